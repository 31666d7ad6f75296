// Package wire has what the two multiplexed wires, api/link and api/h2, both need and what knows
// none of their frames: writes that do not wait (Nonblocking), contexts of handlers that cost
// nothing until they are asked (Context), and recycled buffers for received bodies (Queue).
package wire
