// Package engine consumes and publishes partitioned logs for the app.
package engine
