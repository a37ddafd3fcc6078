package checks

import (
	"context"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// snapshot is the objects in the cluster, as collection/namespace/name.
type snapshot map[string]bool

// passing are objects that come and go by themselves.
var passing = []string{"events", "leases"}

// takeSnapshot lists all objects or, in a cluster that others use meanwhile, those of the product and of the checks.
func (s *site) takeSnapshot(ctx context.Context) (snapshot, error) {
	collections, err := listCollections(ctx, s.api)
	if err != nil {
		return nil, err
	}
	all := snapshot{}
	for _, collection := range collections {
		list, err := kube.Get[metav1.PartialObjectMetadataList](ctx, s.api, collection)
		if err != nil {
			return nil, err
		}
		for _, item := range list.Items {
			if s.cluster != nil || isOurs(item) {
				all[collection+" "+item.Namespace+"/"+item.Name] = true
			}
		}
	}
	return all, nil
}

func isOurs(item metav1.PartialObjectMetadata) bool {
	return item.Namespace == namespace || item.Namespace == tenant || item.Labels["app.kubernetes.io/part-of"] == "kubevirt-imds"
}

// less returns what is in s and not in other, sorted.
func (s snapshot) less(other snapshot) []string {
	var more []string
	for _, object := range slices.Sorted(maps.Keys(s)) {
		if !other[object] {
			more = append(more, object)
		}
	}
	return more
}

// listCollections returns the path of every collection of the API that can be listed, in one version each.
func listCollections(ctx context.Context, api *kube.Client) ([]string, error) {
	groups, err := kube.Get[metav1.APIGroupList](ctx, api, "/apis")
	if err != nil {
		return nil, err
	}
	versions := []string{"/api/v1"}
	for _, group := range groups.Groups {
		versions = append(versions, "/apis/"+group.PreferredVersion.GroupVersion)
	}
	var collections []string
	for _, version := range versions {
		resources, err := kube.Get[metav1.APIResourceList](ctx, api, version)
		if err != nil {
			return nil, err
		}
		for _, resource := range resources.APIResources {
			if slices.Contains(resource.Verbs, "list") && !strings.Contains(resource.Name, "/") && !slices.Contains(passing, resource.Name) {
				collections = append(collections, version+"/"+resource.Name)
			}
		}
	}
	return collections, nil
}
