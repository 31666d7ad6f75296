package engine

import "math/bits"

// partitionOf is the partition of n that a key belongs to: murmur2 with Kafka's seed and sign, so that
// a Java producer puts the same key on the same partition.
func partitionOf(key string, n int32) int32 {
	return int32(murmur2(key)&0x7fffffff) % n
}

// murmur2 is Austin Appleby's hash in 32 bits, over little-endian words.
func murmur2(s string) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(s))
	for ; len(s) >= 4; s = s[4:] {
		k := uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
		k *= m
		k ^= k >> 24
		k *= m
		h = h*m ^ k
	}
	switch len(s) {
	case 3:
		h ^= uint32(s[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(s[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(s[0])) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

// spread mixes a number, for choices that are to be even but need not be random.
func spread(n uint64) uint32 {
	hi, lo := bits.Mul64(n, 0x9e3779b97f4a7c15)
	return uint32((hi ^ lo) >> 16)
}
