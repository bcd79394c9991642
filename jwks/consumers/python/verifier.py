"""One PyJWT verifier as a child process: JSON lines in, JSON lines out.

First line in: {library, jwks_url, issuer, audience, algorithms}; answered by
{"ready": true}. Then {id, token}, each answered by {id, ok, why}. Ends at the
end of its input.
"""

import json
import sys

import jwt


def write(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main():
    config = json.loads(sys.stdin.readline())
    # The cache and its lifespan are the library's defaults.
    client = jwt.PyJWKClient(config["jwks_url"])
    write({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            key = client.get_signing_key_from_jwt(request["token"])
            jwt.decode(
                request["token"],
                key.key,
                algorithms=config["algorithms"],
                audience=config["audience"],
                issuer=config["issuer"],
                options={"require": ["exp"]},
            )
        except Exception as err:  # whatever is raised here reaches a caller as a refusal
            why = f"{type(err).__name__}: {err}"
            write({"id": request["id"], "ok": False, "why": why[:1000]})
        else:
            write({"id": request["id"], "ok": True, "why": ""})


if __name__ == "__main__":
    main()
