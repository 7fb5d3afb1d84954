//go:build tools

// Package tools pins the MongoDB-compatible server that the tests of MongoAssetStore run against.
package tools

import _ "github.com/FerretDB/FerretDB/cmd/ferretdb"
