package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba"
	"ropeway.dev/ropeway/internal/install"
	"ropeway.dev/ropeway/internal/install/report"
)

// cloudKeys are the vendor's own variables for a person's keys.
type cloudKeys struct{ id, secret, token string }

// doctorCloud is how doctor reaches the cloud, to look and never to change.
type doctorCloud struct {
	provider string
	settings cloud.Settings
	keys     cloudKeys
}

func (d *doctorCloud) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.provider, "cloud", "", "also look at this cloud's route tables, interfaces and security groups: alibaba. Keys come from ALIBABA_CLOUD_ACCESS_KEY_ID, "+
		"ALIBABA_CLOUD_ACCESS_KEY_SECRET and ALIBABA_CLOUD_SECURITY_TOKEN, or from this machine's RAM role; nothing is changed")
	f.StringVar(&d.settings.Region, "cloud-region", "", "the cloud's region, like cn-chengdu")
	f.StringVar(&d.settings.VPC, "cloud-vpc", "", "the id of the VPC that the nodes are in")
	f.StringSliceVar(&d.settings.Tables, "cloud-route-table", nil, "route table to look at; can be repeated (default the VPC's only one)")
	f.StringVar(&d.settings.Endpoint, "cloud-endpoint", "", "host of the cloud's API, where it is not the region's for machines of the VPC; from elsewhere {product}.{region}.aliyuncs.com")
}

// check says what is wrong with the flags.
func (d *doctorCloud) check() error {
	given := d.settings.Region != "" || d.settings.VPC != "" || d.settings.Endpoint != "" || len(d.settings.Tables) > 0
	switch {
	case d.provider == "" && given:
		return errors.New("--cloud-region, --cloud-vpc, --cloud-route-table and --cloud-endpoint go with --cloud: give --cloud alibaba")
	case d.provider != "" && d.provider != alibaba.Name:
		return fmt.Errorf("--cloud: %q is not a cloud that this version knows: give alibaba", d.provider)
	}
	return nil
}

// look reads the cloud; nil when it was not asked for.
func (d *doctorCloud) look(ctx context.Context, s *install.Survey) (*report.Cloud, error) {
	if d.provider == "" {
		return nil, nil
	}
	if d.keys.id != "" {
		d.settings.Secret = map[string][]byte{alibaba.SecretKeyID: []byte(d.keys.id), alibaba.SecretKeySecret: []byte(d.keys.secret)}
		if d.keys.token != "" {
			d.settings.Secret[alibaba.SecretToken] = []byte(d.keys.token)
		}
	}
	provider, err := alibaba.New(ctx, d.settings)
	if err != nil {
		return nil, fmt.Errorf("look at the cloud (--cloud-region and --cloud-vpc say where): %w", err)
	}
	return report.LookAt(ctx, provider, s)
}
