// Package openapi is the lab's stand-in for the cloud: an HTTP server that
// behaves like Alibaba Cloud's OpenAPI for Vpc 2016-04-28, Ecs 2014-05-26 and
// a little of Sts 2015-04-01, and like the metadata service of an instance,
// in front of the lab's VPC, whose data plane follows the route tables, the
// source checks, the security group and the instances' states that are kept here.
//
// It is not a mock of one client: requests are RPC calls with parameters in
// the query or in a form, signed with signature version 1 (HMAC-SHA1) or 3
// (ACS3-HMAC-SHA256), both verified; answers, paging, asynchronous states, one
// writer for each VPC, quota, overlap rules and partial results of batches are
// those of the vendor's pages. Where the pages are silent the comment says
// which behaviour was chosen. Faults are injected on demand (Fault).
//
// Files: request, signature and faults are what happens to any call; routes is
// the route tables' own logic; vpcapi, ecsapi and stsapi put it on the wire;
// metadata is the instances' view; admin is the lab's back door.
package openapi
