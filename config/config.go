// Package config holds the manifests that an installation is rendered from:
// the CRDs, generated from api/v1alpha1, and the templates of everything else.
package config

import (
	"embed"
	"io/fs"
)

//go:embed crd/*.yaml install/*.yaml.tmpl uninstall/*.yaml.tmpl
var files embed.FS

// CRDs are the CustomResourceDefinitions, one file each.
func CRDs() fs.FS { return sub("crd") }

// Templates are the text templates of the other objects. Their names begin
// with the order in which they are applied.
func Templates() fs.FS { return sub("install") }

// Removal are the templates of what takes an installation off the nodes.
func Removal() fs.FS { return sub("uninstall") }

func sub(dir string) fs.FS {
	// fs.Sub fails for a malformed name only, and these are constants.
	f, err := fs.Sub(files, dir)
	if err != nil {
		panic(err)
	}
	return f
}
