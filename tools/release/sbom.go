package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"sigs.k8s.io/kustomize/api/types"
)

const (
	source  = "https://github.com/example/kubevirt-imds"
	license = "Apache-2.0"

	noAssertion = "NOASSERTION" // SPDX for: not looked into
)

// programs are those in each image, as the Containerfile has them.
var programs = map[string][]string{
	"kubevirt-imds-server":  {"imds-server", "imds-init"},
	"kubevirt-imds-webhook": {"imds-webhook"},
}

// sbom describes an image: the programs in it for each architecture and, as the Go linker has written it into
// them, the modules of each.
func (r *release) sbom(ctx context.Context, image types.Image) ([]byte, error) {
	sources, err := findSources(ctx, r.tree)
	if err != nil {
		return nil, err
	}
	d := &document{sources: sources, Document: spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      image.Name + " " + r.version,
		DocumentNamespace: source + "/spdx/" + image.Name + "/" + r.version + "/" + strings.TrimPrefix(image.Digest, "sha256:"),
		CreationInfo: &spdx.CreationInfo{
			Creators: []spdx.Creator{{CreatorType: "Tool", Creator: "kubevirt-imds-release-" + r.version}},
			Created:  r.time.Format(time.RFC3339),
		},
	}}
	sum := spdx.Checksum{Algorithm: spdx.SHA256, Value: strings.TrimPrefix(image.Digest, "sha256:")}
	whole := d.add("image", spdx.Package{
		PackageName: image.NewName, PackageVersion: r.version, PackageDownloadLocation: "git+" + source + "@" + r.commit, PackageLicenseDeclared: license,
	}, fmt.Sprintf("pkg:oci/%s@%s?repository_url=%s&tag=%s", path.Base(image.NewName), url.QueryEscape(image.Digest), url.QueryEscape(image.NewName), r.version), sum)
	d.relate("DOCUMENT", spdx.RelationshipDescribes, whole)
	for _, architecture := range architectures {
		for _, name := range programs[image.Name] {
			if err := r.addProgram(d, whole, architecture, name); err != nil {
				return nil, err
			}
		}
	}
	var content bytes.Buffer
	err = spdxjson.Write(&d.Document, &content, spdxjson.Indent("  "))
	return content.Bytes(), err
}

func (r *release) addProgram(d *document, whole spdx.ElementID, architecture, name string) error {
	file := filepath.Join(r.tree, "bin", "linux-"+architecture, name)
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	modules, err := modulesOf(content)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	hash := sha256.Sum256(content)
	program := d.add(name+"-"+architecture, spdx.Package{
		PackageName: name, PackageVersion: r.version, PackageFileName: "/" + name, PackageDownloadLocation: noAssertion,
		PackageComment: "for linux/" + architecture, PackageLicenseDeclared: license,
	}, "", spdx.Checksum{Algorithm: spdx.SHA256, Value: hex.EncodeToString(hash[:])})
	d.relate(whole, spdx.RelationshipContains, program)
	for _, m := range modules {
		id, err := d.module(m)
		if err != nil {
			return err
		}
		d.relate(program, spdx.RelationshipDependsOn, id)
	}
	return nil
}

// document is one that gives each package and module an identifier.
type document struct {
	spdx.Document
	sources sources
	modules []module
}

// module adds a module, unless it is there.
func (d *document) module(m module) (spdx.ElementID, error) {
	id := fmt.Sprintf("module-%d", slices.Index(d.modules, m))
	if slices.Contains(d.modules, m) {
		return spdx.ElementID(id), nil
	}
	declared, err := d.sources.declared(m)
	d.modules = append(d.modules, m)
	return d.add(fmt.Sprintf("module-%d", len(d.modules)-1),
		spdx.Package{PackageName: m.path, PackageVersion: m.version, PackageDownloadLocation: noAssertion, PackageLicenseDeclared: declared},
		"pkg:golang/"+m.path+"@"+url.QueryEscape(m.version)), err
}

func (d *document) add(id string, p spdx.Package, purl string, sums ...spdx.Checksum) spdx.ElementID {
	p.PackageSPDXIdentifier, p.PackageChecksums = spdx.ElementID(id), sums
	p.PackageCopyrightText, p.PackageLicenseConcluded = noAssertion, noAssertion
	if p.PackageLicenseDeclared == "" {
		p.PackageLicenseDeclared = noAssertion
	}
	if purl != "" {
		p.PackageExternalReferences = []*spdx.PackageExternalReference{{Category: spdx.CategoryPackageManager, RefType: spdx.PackageManagerPURL, Locator: purl}}
	}
	d.Packages = append(d.Packages, &p)
	return p.PackageSPDXIdentifier
}

func (d *document) relate(a spdx.ElementID, how string, b spdx.ElementID) {
	d.Relationships = append(d.Relationships, &spdx.Relationship{
		RefA: spdx.DocElementID{ElementRefID: a}, Relationship: how, RefB: spdx.DocElementID{ElementRefID: b},
	})
}
