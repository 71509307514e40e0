package cloud

import "slices"

// Setup says which cloud, and with which credentials: what spec.cloud of the
// ClusterNetwork asks for.
type Setup struct {
	Provider, Region, VPC, Endpoint string
	Tables                          []string
	Secret                          string // name, in kube-system; "" for the environment's keys, or the instance's role
}

// Equal reports whether a provider made for one serves the other.
func (s Setup) Equal(o Setup) bool {
	return s.Provider == o.Provider && s.Region == o.Region && s.VPC == o.VPC && s.Endpoint == o.Endpoint &&
		s.Secret == o.Secret && slices.Equal(s.Tables, o.Tables)
}
