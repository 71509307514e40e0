package alibaba

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/alibabacloud-go/tea/dara"
	"github.com/aliyun/credentials-go/credentials"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba/metadata"
)

// The keys of spec.cloud.credentialsSecret.
const (
	SecretKeyID     = "accessKeyID"
	SecretKeySecret = "accessKeySecret"
	SecretToken     = "securityToken"
)

// renewBefore is how long before their end a role's keys are renewed. The
// service gives new ones about half an hour before.
const renewBefore = 10 * time.Minute

// keySource gives the credentials for one call. The vendor's credentials-go
// supplies their form, and the static kind; its provider for roles is not used:
// it has no lock, no context, the address written in, and throws away keys that
// are still good when one renewal fails.
type keySource interface {
	credential(ctx context.Context) (credentials.Credential, error)
	// refused is told that the cloud does not take the credentials any more.
	refused()
}

// staticKeys are keys that do not change.
type staticKeys struct{ keys credentials.Credential }

func (s staticKeys) credential(context.Context) (credentials.Credential, error) { return s.keys, nil }

func (staticKeys) refused() {}

// readEvery is how old keys from a Secret may be, and readAgain how soon they
// are read again after the cloud has refused them.
const (
	readEvery = time.Minute
	readAgain = 5 * time.Second
)

// secretKeys are keys from a Secret that may change: the new ones are used
// within a minute, or at once where the old ones are refused. Keys at hand are
// used on while the Secret cannot be read, or has none.
type secretKeys struct {
	read func(ctx context.Context) (map[string][]byte, error)
	log  *slog.Logger
	now  func() time.Time

	mu    sync.Mutex
	keys  credentials.Credential
	last  time.Time // when the Secret was read
	wrong bool      // the cloud has refused them since
}

func (s *secretKeys) credential(ctx context.Context) (credentials.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := s.now().Sub(s.last)
	if s.keys != nil && (age < readAgain || age < readEvery && !s.wrong) {
		return s.keys, nil
	}
	s.last, s.wrong = s.now(), false
	keys, err := s.renew(ctx)
	switch {
	case err == nil:
		s.keys = keys
	case s.keys != nil:
		s.log.Warn("the Secret with the cloud's credentials cannot be used; those at hand are used on", "err", err)
	default:
		return nil, err
	}
	return s.keys, nil
}

func (s *secretKeys) renew(ctx context.Context) (keys credentials.Credential, err error) {
	data, err := s.read(ctx)
	if err == nil {
		keys, err = keysOfSecret(data)
	}
	if err != nil {
		return nil, &cloud.Error{Class: cloud.Unauthenticated, Message: "no credentials", Err: err}
	}
	return keys, nil
}

func (s *secretKeys) refused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = true
}

// keysOfSecret reads a Secret's data. Space around values is dropped: a file's
// last newline ends up in Secrets all the time.
func keysOfSecret(data map[string][]byte) (credentials.Credential, error) {
	value := func(key string) string { return strings.TrimSpace(string(data[key])) }
	var missing []error
	for _, key := range []string{SecretKeyID, SecretKeySecret} {
		if value(key) == "" {
			missing = append(missing, fmt.Errorf("the Secret of spec.cloud.credentialsSecret (or the environment, where there is no Secret) has no key %s: set it", key))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return nil, err
	}
	return newCredential(value(SecretKeyID), value(SecretKeySecret), value(SecretToken))
}

func newCredential(id, secret, token string) (credentials.Credential, error) {
	config := &credentials.Config{Type: dara.String("access_key"), AccessKeyId: dara.String(id), AccessKeySecret: dara.String(secret)}
	if token != "" {
		config.Type, config.SecurityToken = dara.String("sts"), dara.String(token)
	}
	made, err := credentials.NewCredential(config)
	if err != nil {
		return nil, fmt.Errorf("making credentials of access key %s: %w", id, err)
	}
	return made, nil
}

// roleKeys are the temporary keys of the instance's role, renewed in time. One
// caller renews, the others wait. Keys that are good yet are used on when the
// metadata service fails.
type roleKeys struct {
	service *metadata.Client
	log     *slog.Logger
	now     func() time.Time

	mu      sync.Mutex
	keys    credentials.Credential
	expires time.Time
	again   time.Time // no renewal before
	renewed time.Time
}

func (r *roleKeys) credential(ctx context.Context) (credentials.Credential, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys != nil && (r.now().Before(r.expires.Add(-renewBefore)) || r.usable() && r.now().Before(r.again)) {
		return r.keys, nil
	}
	err := r.renew(ctx)
	switch {
	case err == nil:
		return r.keys, nil
	case r.usable():
		r.again = r.now().Add(renewBefore / 10)
		r.log.Warn("the role's keys could not be renewed; those at hand are used on", "until", r.expires, "err", err)
		return r.keys, nil
	}
	return nil, err
}

// refused lets the next call ask for new keys, but not in quick succession.
func (r *roleKeys) refused() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now().Sub(r.renewed) >= readAgain {
		r.keys = nil
	}
}

func (r *roleKeys) usable() bool { return r.keys != nil && r.now().Before(r.expires) }

func (r *roleKeys) renew(ctx context.Context) error {
	got, err := r.service.Keys(ctx)
	if err != nil {
		class := cloud.Unreachable // nothing was sent to the cloud
		if metadata.NotFound(err) {
			class = cloud.Unauthenticated
			err = fmt.Errorf("%w: attach a RAM role to the controller's instances, or name a Secret in spec.cloud.credentialsSecret", err)
		}
		return &cloud.Error{Class: class, Message: "no credentials", Err: err}
	}
	keys, err := newCredential(got.AccessKeyID, got.AccessKeySecret, got.SecurityToken)
	if err != nil {
		return &cloud.Error{Class: cloud.Unauthenticated, Message: "no credentials", Err: err}
	}
	r.keys, r.expires, r.renewed = keys, got.Expires, r.now()
	r.again = r.now().Add(got.Expires.Sub(r.now()) / 2) // short-lived keys are not renewed at each call
	return nil
}
