package product

import (
	"context"
	"fmt"
	"strings"

	"ropeway.dev/ropeway/internal/lab"
)

// Access is how Ropeway gets at a lab's cloud.
type Access struct{ Region, VPC, Endpoint, Secret string }

// Args are the flags of `ropeway install` that say so.
func (a Access) Args() []string {
	return []string{"--cloud", "alibaba", "--cloud-region", a.Region, "--cloud-vpc", a.VPC, "--cloud-endpoint", a.Endpoint, "--cloud-secret", a.Secret}
}

// CloudAccess puts the credentials of the lab's cloud into a Secret, as the manual
// says.
func CloudAccess(ctx context.Context, l *lab.Lab) (Access, error) {
	cloud, err := l.Cloud()
	if err != nil {
		return Access{}, err
	}
	snapshot, err := cloud.Snapshot(ctx)
	if err != nil {
		return Access{}, err
	}
	a := Access{Region: snapshot.Spec.Region, VPC: snapshot.Spec.VPC, Endpoint: "http://" + l.CloudEndpoint(), Secret: "ropeway-cloud"}
	secret := fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: kube-system}
stringData: {accessKeyID: %q, accessKeySecret: %q}
`, a.Secret, snapshot.Spec.Key.ID, snapshot.Spec.Key.Secret)
	_, err = l.KubectlInput(ctx, strings.NewReader(secret), "apply", "-f", "-")
	return a, err
}
