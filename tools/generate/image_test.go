package main

import (
	"testing"

	"sigs.k8s.io/kustomize/api/types"

	"github.com/example/kubevirt-imds/tools/generate/internal/render"
)

// overlayImages are the two images that every overlay names.
func overlayImages(t *testing.T) (server, webhook types.Image) {
	t.Helper()
	var component types.Kustomization
	readStrictly(t, "images/kustomization.yaml", &component)
	if len(component.Images) != 2 || component.Images[0].Name != "kubevirt-imds-server" || component.Images[1].Name != "kubevirt-imds-webhook" {
		t.Fatalf("images %+v", component.Images)
	}
	return component.Images[0], component.Images[1]
}

// TestImagesComeFromOnePlace: wherever an image is named, with the agent too, it is the
// one of kustomize/images.
func TestImagesComeFromOnePlace(t *testing.T) {
	server, webhook := overlayImages(t)
	wantServer, wantWebhook := server.NewName+":"+server.NewTag, webhook.NewName+":"+webhook.NewTag
	for _, folder := range append([]string{"kustomize"}, render.Overlays...) {
		tree := loadTree(t)
		content, err := tree.BuildWith(folder, "node-agent")
		if err != nil {
			t.Fatal(err)
		}
		with, without := decode(t, content), build(t, tree, folder)
		if image := with.agent.daemonSet.Spec.Template.Spec.Containers[0].Image; image != wantServer {
			t.Errorf("%s: the agent's image is %s, want %s", folder, image, wantServer)
		}
		for _, r := range []rendered{with, without} {
			template := r.deployment.Spec.Template
			pulled, told := template.Spec.InitContainers[0].Image, template.Annotations["imds.kubevirt.io/server-image"]
			if own := template.Spec.Containers[0].Image; pulled != wantServer || told != wantServer || own != wantWebhook {
				t.Errorf("%s: %s is pulled, the sidecars get %s, the webhook is %s", folder, pulled, told, own)
			}
		}
	}
}
