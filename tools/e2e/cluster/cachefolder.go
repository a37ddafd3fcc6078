package cluster

import (
	"os"
	"path/filepath"
)

// CacheFolder makes, in the user's cache folder, the one for what the checks make once, and returns it.
func CacheFolder() (string, error) {
	caches, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(caches, cacheName)
	return folder, os.MkdirAll(folder, 0o755)
}
