package aws

import (
	"context"
	"errors"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

var _ providers.Eraser = (*secretStore)(nil)

// Erase deletes a secret at once, without the window in which it could be restored: see
// [providers.Eraser].
func (s *secretStore) Erase(ctx context.Context, path string) error {
	err := s.do(ctx, "delete secret "+path, func() error {
		out, err := s.client.DeleteSecret(ctx, &sm.DeleteSecretInput{SecretId: &path, ForceDeleteWithoutRecovery: sdk.Bool(true)})
		return answered(err, err == nil && out.ARN != nil)
	})
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}
