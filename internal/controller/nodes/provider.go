package nodes

import cloudprovider "k8s.io/cloud-provider"

// provider is the cloudprovider.Interface that the controllers ask for: nodes'
// instances and nothing else.
type provider struct {
	name      string
	instances *instances
}

var _ cloudprovider.Interface = provider{}

// Initialize has nothing to do.
func (provider) Initialize(cloudprovider.ControllerClientBuilder, <-chan struct{}) {}

// LoadBalancer: there is none.
func (provider) LoadBalancer() (cloudprovider.LoadBalancer, bool) { return nil, false }

// Instances is the interface before InstancesV2.
func (provider) Instances() (cloudprovider.Instances, bool) { return nil, false }

// InstancesV2 is what this provider is for.
func (p provider) InstancesV2() (cloudprovider.InstancesV2, bool) { return p.instances, true }

// Zones is the interface before InstancesV2.
func (provider) Zones() (cloudprovider.Zones, bool) { return nil, false }

// Clusters is not used by any controller.
func (provider) Clusters() (cloudprovider.Clusters, bool) { return nil, false }

// Routes: package routes makes them, in batches.
func (provider) Routes() (cloudprovider.Routes, bool) { return nil, false }

// ProviderName is the cloud's.
func (p provider) ProviderName() string { return p.name }

// HasClusterID says that there is nothing to warn of.
func (provider) HasClusterID() bool { return true }
