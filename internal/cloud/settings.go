package cloud

import (
	"context"
	"log/slog"
	"time"
)

// Settings are what a provider is made from: ClusterNetwork's spec.cloud, and
// the Secret that it names.
type Settings struct {
	Region string // where the VPC is; "" asks the metadata service
	VPC    string // "" asks the metadata service
	// Tables are the route tables to write; empty means the VPC's only one,
	// and an error where it has several.
	Tables []string
	// Endpoint replaces the cloud's address for machines of the VPC, as a URL or
	// host:port; {product} and {region} in it stand for their names.
	Endpoint string
	// Secret is the data of spec.cloud.credentialsSecret: accessKeyID and
	// accessKeySecret, and securityToken with temporary ones. nil means the
	// rights of the instance's role, from the metadata service.
	Secret map[string][]byte
	// ReadSecret reads Secret; with it, a change is followed without a new
	// provider.
	ReadSecret func(ctx context.Context) (map[string][]byte, error)
	// Called is told of every call of the cloud's API when it ends; nil for
	// nobody. It may be called from several goroutines.
	Called func(action string, took time.Duration, err error)
	// Log is nil for slog.Default().
	Log *slog.Logger
}

// New makes a provider. It may call the metadata service and the cloud once to
// find out what Settings leave open; whoever calls it tries again later when
// that fails.
type New func(ctx context.Context, s Settings) (Provider, error)
