//go:build !linux

package hostdir_test

const hearsOfKills = false
