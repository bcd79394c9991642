package httpsig

import (
	"encoding/hex"
	"strings"
	"testing"
)

// The bodies and digests of RFC 9530 section 2 and appendix B. Its Brotli example
// is taken as erratum 8890 has it: the bytes that were printed have another digest.
func TestRFC9530Digests(t *testing.T) {
	const (
		hello  = "{\"hello\": \"world\"}\n"
		sha256 = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
		sha512 = "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:"
	)
	brotli, err := hex.DecodeString("0b09807b2268656c6c6f223a2022776f726c64227d0a03")
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		hello:                          sha256,
		"":                             "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
		"\"world\"}\n":                 "sha-256=:jjcgBDWNAtbYUXI37CVG3gRuGOAjaaDRGpIUFsdyepQ=:",
		"{\"title\": \"New Title\"}\n": "sha-256=:mEkdbO7Srd9LIOegftO0aBX+VPTVz7/CSHes2Z27gc4=:",
		string(brotli):                 "sha-256=:d435Qo+nKZ+gLcUHn7GQtQ72hiBVAgqoLsZnZPiTGPk=:",
	} {
		if got := Digest([]byte(body)); got != want {
			t.Errorf("Digest(%q) = %s, want %s", body, got, want)
		}
		if err := CheckDigest([]string{want}, []byte(body)); err != nil {
			t.Errorf("CheckDigest(%s, %q): %v", want, body, err)
		}
	}
	wrong512 := strings.Replace(sha512, "YMAa", "YMAb", 1)
	for _, v := range []struct {
		name   string
		values []string
		reason string
	}{
		{"SHA-256", []string{sha256}, "ok"},
		{"SHA-512", []string{sha512}, "ok"},
		{"both", []string{sha256 + ", " + sha512}, "ok"},
		{"both, in two lines", []string{sha512, sha256}, "ok"},
		{"with white space", []string{"\t" + sha256 + " "}, "ok"},
		{"with one that is weak", []string{"md5=:Sd/dVLAcvNLSq16eXua5uQ==:, " + sha256}, "ok"},
		{"with one that is not known", []string{sha256 + ", sha-3=:AAAA:"}, "ok"},

		{"section 2, of two bodies", []string{"sha-256=:d435Qo+nKZ+gLcUHn7GQtQ72hiBVAgqoLsZnZPiTGPk=:," + sha512}, ReasonDigest},
		{"one of two is wrong", []string{sha256, wrong512}, ReasonDigest},
		{"the other is wrong", []string{"sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", sha512}, ReasonDigest},
		{"wrong", []string{"sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"}, ReasonDigest},
		{"none", nil, ReasonDigest},
		{"weak ones only", []string{"md5=:Sd/dVLAcvNLSq16eXua5uQ==:, sha=:lKqkEYiDf8Fk5Yn3LxGyiMWRlQU=:, unixsum=:AA==:, unixcksum=:AA==:, adler=:AA==:, crc32c=:AA==:"}, ReasonDigest},
		{"not known only", []string{"sha3-256=:AAAA:"}, ReasonDigest},
		{"cut", []string{"sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP8=:"}, ReasonDigest},
		{"empty value", []string{"sha-256=::"}, ReasonDigest},

		{"empty", []string{""}, ReasonMalformed},
		{"appendix B.5, with padding too much", []string{"sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg==:"}, ReasonMalformed},
		{"without padding", []string{"sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg:"}, ReasonMalformed},
		{"with spare bits", []string{"sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDh=:"}, ReasonMalformed},
		{"with a line end", []string{"sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=\n:"}, ReasonMalformed},
		{"in the alphabet of URLs", []string{strings.ReplaceAll(sha256, "/", "_")}, ReasonMalformed},
		{"a string", []string{`sha-256="RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="`}, ReasonMalformed},
		{"a parameter", []string{sha256 + ";a"}, ReasonMalformed},
		{"no closing colon", []string{strings.TrimSuffix(sha256, ":") + "x"}, ReasonMalformed},
		{"the old Digest field", []string{"SHA-256=RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="}, ReasonMalformed},
		{"upper case", []string{strings.ToUpper(sha256[:7]) + sha256[7:]}, ReasonMalformed},
		{"one that is not known and not base64", []string{sha256 + ", x=:&:"}, ReasonMalformed},
		{"comma at the end", []string{sha256 + ","}, ReasonMalformed},
		{"two with no comma", []string{sha256 + " " + sha512}, ReasonMalformed},
		{"one twice", []string{sha256 + ", " + sha256}, ReasonDuplicate},
		{"one twice, the last right", []string{"sha-512=::, " + sha512}, ReasonDigest},
		{"one twice, in two lines", []string{sha256, sha256}, ReasonDuplicate},
		{"too long", []string{sha256 + strings.Repeat(" ", maxField)}, ReasonMalformed},
		{"too many", []string{manyDigests(maxLabels + 1)}, ReasonMalformed},
	} {
		if err := CheckDigest(v.values, []byte(hello)); reason(err) != v.reason {
			t.Errorf("%s: %v, want %s", v.name, err, v.reason)
		}
	}
}

func manyDigests(n int) string {
	var b []string
	for i := range n {
		b = append(b, "x"+strings.Repeat("y", i)+"=:AAAA:")
	}
	return strings.Join(b, ", ")
}
