// Package settings is the sidecar's own configuration: its command-line flags and
// environment, the resource files it is pointed at, and the changes in them while it runs.
//
// It reads, checks and reports; it opens nothing and decides nothing about calls. Messages
// say where (file and line, flag or variable), what is wrong and what would be right. What a
// component's metadata means is its backend's business (components/conf decodes it); which
// components are opened is runtime/catalog's.
//
// Flags, defaults, file formats and their quirks are Dapr's, so that existing command lines
// and resources work unchanged. Where we differ on purpose (listeners bind loopback, what
// we cannot enforce is refused) the flag reference says so.
//
// Start reading at Settings and Parse for the command line, at Resources and LoadResources
// for files, at Watcher for reload.
package settings
