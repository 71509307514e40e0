package pki

import (
	"encoding/base64"
	"fmt"
)

// Kubeconfig renders the kubeconfig of a user with a client certificate. The
// cluster is called "lab" in it, so that a prompt shows where one works.
func Kubeconfig(server, user string, authority, client Pair) []byte {
	encoded := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: %q
    certificate-authority-data: %s
users:
- name: %q
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: lab
  context:
    cluster: lab
    user: %q
current-context: lab
`, server, encoded(authority.Certificate), user, encoded(client.Certificate), encoded(client.Key), user)
}
