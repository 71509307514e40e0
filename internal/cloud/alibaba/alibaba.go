// Package alibaba is Alibaba Cloud behind internal/cloud's interfaces: route
// entries by Vpc 2016-04-28, instances by Ecs 2014-05-26, through the vendor's
// generic client (darabonba-openapi), since its clients for single products
// bring hundreds of actions for the handful that is used here.
package alibaba

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/alibabacloud-go/tea/dara"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba/metadata"
)

// Name is what ClusterNetwork's spec.cloud.provider calls this provider.
const Name = "alibaba"

// Options are Settings and what tests and odd machines need beside them.
type Options struct {
	cloud.Settings
	Metadata string        // URL of the metadata service; "" means the real one's
	Pause    time.Duration // before the second try of a reading call; 0 means 500 ms
	Log      *slog.Logger  // nil means Settings'
	// HTTP sends the signed requests; nil means a client of its own.
	HTTP dara.HttpClient
}

func (o *Options) setDefaults() {
	if o.Pause == 0 {
		o.Pause = 500 * time.Millisecond
	}
	if o.Log == nil {
		o.Log = o.Settings.Log
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.HTTP == nil {
		o.HTTP = newSender()
	}
}

// Provider is one VPC of one account.
type Provider struct {
	vpc    string
	tables []string // configured; empty means to find the only one
	call   *caller

	found tableCache
}

var (
	_ cloud.Provider = (*Provider)(nil)
	_ cloud.Checker  = (*Provider)(nil)
	_ cloud.New      = New
)

// New makes a provider; it is a cloud.New. It asks the metadata service for the
// region and the VPC if they are not set, and calls nothing else.
func New(ctx context.Context, s cloud.Settings) (cloud.Provider, error) {
	return Open(ctx, Options{Settings: s})
}

// Open is New with options. Errors are *cloud.Error.
func Open(ctx context.Context, o Options) (*Provider, error) {
	o.setDefaults()
	service := metadata.New(o.Metadata)
	region, vpc, err := place(ctx, o.Settings, service)
	if err != nil {
		return nil, err
	}
	keys, err := keysOf(ctx, o, service)
	if err != nil {
		return nil, err
	}
	for _, p := range []product{vpcAPI(), ecsAPI()} {
		if _, err := endpointOf(p, region, o.Endpoint); err != nil {
			return nil, &cloud.Error{Class: cloud.Permanent, Message: "no endpoint", Err: err}
		}
	}
	call := &caller{
		region: region, override: o.Endpoint, keys: keys, http: o.HTTP, observe: o.Called,
		log: o.Log.With("region", region, "vpc", vpc), pause: o.Pause, now: time.Now,
	}
	return &Provider{vpc: vpc, tables: slices.Clone(o.Tables), call: call}, nil
}

// keysOf returns where the credentials come from.
func keysOf(ctx context.Context, o Options, service *metadata.Client) (keySource, error) {
	switch {
	case o.ReadSecret != nil:
		keys := &secretKeys{read: o.ReadSecret, log: o.Log, now: time.Now}
		_, err := keys.credential(ctx) // say now what is missing
		return keys, err
	case o.Secret != nil:
		keys, err := keysOfSecret(o.Secret)
		if err != nil {
			return nil, &cloud.Error{Class: cloud.Unauthenticated, Message: "no credentials", Err: err}
		}
		return staticKeys{keys}, nil
	}
	return &roleKeys{service: service, log: o.Log, now: time.Now}, nil
}

// place returns the region and the VPC: as set, or where this machine is.
func place(ctx context.Context, s cloud.Settings, service *metadata.Client) (region, vpc string, err error) {
	region, vpc = s.Region, s.VPC
	for _, part := range []struct {
		key, field string
		into       *string
	}{{"region-id", "regionID", &region}, {"vpc-id", "vpcID", &vpc}} {
		if *part.into != "" {
			continue
		}
		value, err := service.Get(ctx, part.key)
		if err == nil && (value == "" || strings.ContainsAny(value, " \t\n<>/")) {
			err = fmt.Errorf("the metadata service's %s is %q", part.key, value)
		}
		if err != nil {
			return "", "", &cloud.Error{Class: cloud.Passing, Message: fmt.Sprintf("spec.cloud.%s is not set, and this machine does not tell it: set it", part.field), Err: err}
		}
		*part.into = value
	}
	return region, vpc, nil
}

// Name is the provider's name.
func (p *Provider) Name() string { return Name }

// Routes returns the VPC's routes.
func (p *Provider) Routes() cloud.Routes { return routes{p} }

// Instances returns the VPC's instances.
func (p *Provider) Instances() cloud.Instances { return instances{p} }

// pages walks an answer that comes in pages by token. fetch gets the token of a
// page, "" for the first, and returns that of the next, "" behind the last.
func pages(action string, fetch func(token string) (next string, err error)) error {
	token, seen := "", map[string]bool{}
	for {
		next, err := fetch(token)
		if err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		if seen[next] {
			return &cloud.Error{Class: cloud.Lost, Action: action, Err: errors.New("the same page again: the listing does not end")}
		}
		seen[next], token = true, next
	}
}
