package cluster

import "net/http"

// API returns a client with the rights of the cluster's administrator, and the address of the API for it.
func (c *Cluster) API() (client *http.Client, address string) {
	return c.client, "https://" + apiServer
}
