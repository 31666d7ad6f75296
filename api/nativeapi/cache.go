package nativeapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mecha-project/mecha/api/apierr"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/cache"
)

// Cache is the cache service.
type Cache interface {
	Get(ctx context.Context, cacheName, namespace, key string, staleOK bool) (cache.Entry, error)
	GetMulti(ctx context.Context, cacheName, namespace string, keys []string, staleOK bool) ([]cache.Entry, error)
	Set(ctx context.Context, cacheName, namespace, key string, value []byte, o cache.Options, e *cache.Epoch) (version string, err error)
	SetMulti(ctx context.Context, cacheName, namespace string, items []cache.Item, o cache.Options) ([]string, error)
	Delete(ctx context.Context, cacheName, namespace, key string) error
	Touch(ctx context.Context, cacheName, namespace, key string, ttl time.Duration) (bool, error)
	Increment(ctx context.Context, cacheName, namespace, key string, delta, initial int64, ttl time.Duration) (int64, error)
	CompareAndSet(ctx context.Context, cacheName, namespace, key string, value []byte, over string, o cache.Options) (version string, done bool, err error)
	GetOrLoad(ctx context.Context, cacheName, namespace, key string, o cache.Options, timeout, wait time.Duration) (cache.Entry, *cache.Lease, error)
	Fill(ctx context.Context, cacheName, namespace, key, lease string, with cache.Filling) (bool, error)
	Invalidate(ctx context.Context, cacheName, namespace string, what cache.Invalidation) error
	Stats(cacheName, namespace string, all bool) (cache.Stats, error)
	Watch(ctx context.Context, cacheName, namespace, prefix string, tell func(keys []string, all bool) error) error
}

type cacheServer struct {
	mechav1.UnimplementedCacheServer
	s Cache
}

// Get reads one entry.
func (s *cacheServer) Get(ctx context.Context, in *mechav1.CacheGetRequest) (*mechav1.CacheEntry, error) {
	e, err := s.s.Get(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey(), in.GetStaleOk())
	if err != nil {
		return nil, apierr.Native(err)
	}
	return cacheEntry(e), nil
}

func cacheEntry(e cache.Entry) *mechav1.CacheEntry {
	out := &mechav1.CacheEntry{Key: e.Key, Value: e.Value, Version: e.Version, Stale: e.Stale, Expires: moment(e.Expires)}
	switch e.Status {
	case cache.Hit:
		out.Status = mechav1.CacheStatus_CACHE_STATUS_HIT
	case cache.Absent:
		out.Status = mechav1.CacheStatus_CACHE_STATUS_ABSENT
	default:
		out.Status = mechav1.CacheStatus_CACHE_STATUS_MISS
	}
	switch e.Found {
	case cache.Near:
		out.FoundIn = mechav1.CacheTier_CACHE_TIER_NEAR
	case cache.Shared:
		out.FoundIn = mechav1.CacheTier_CACHE_TIER_SHARED
	}
	return out
}

// GetMulti reads several entries.
func (s *cacheServer) GetMulti(ctx context.Context, in *mechav1.CacheGetMultiRequest) (*mechav1.CacheGetMultiResponse, error) {
	es, err := s.s.GetMulti(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKeys(), in.GetStaleOk())
	if err != nil {
		return nil, apierr.Native(err)
	}
	out := &mechav1.CacheGetMultiResponse{Entries: make([]*mechav1.CacheEntry, len(es))}
	for i, e := range es {
		out.Entries[i] = cacheEntry(e)
	}
	return out, nil
}

// options reads how an entry is to be kept.
func cacheOptions(in *mechav1.CacheOptions) (o cache.Options, err error) {
	if in == nil {
		return o, nil
	}
	o = cache.Options{Sliding: in.GetSliding(), Tags: in.GetTags()}
	if in.Jitter != nil {
		o.Jitter = in.Jitter
	}
	if o.TTL, err = positive("options.ttl", in.GetTtl()); err != nil {
		return o, err
	}
	if o.StaleTTL, err = duration("options.stale_ttl", in.GetStaleTtl()); err != nil {
		return o, err
	}
	if in.GetNegativeTtl() != nil {
		d, err := duration("options.negative_ttl", in.GetNegativeTtl())
		if err != nil {
			return o, err
		}
		o.Negative = &d
	}
	switch in.GetTier() {
	case mechav1.CacheTier_CACHE_TIER_UNSPECIFIED:
	case mechav1.CacheTier_CACHE_TIER_NEAR:
		o.Tier = cache.Near
	case mechav1.CacheTier_CACHE_TIER_SHARED:
		o.Tier = cache.Shared
	default:
		return o, apierr.Native(fault.New("nativeapi.options", fault.Invalid, "options.tier is %d, which is not known", in.GetTier()).With(cache.BadOption))
	}
	return o, nil
}

// positive reads a time that must not be 0 when it is given: 0 would be taken for the default.
func positive(name string, d *durationpb.Duration) (time.Duration, error) {
	out, err := duration(name, d)
	if err == nil && d != nil && out <= 0 {
		err = apierr.Native(fault.New("nativeapi.duration", fault.Invalid, "%s is %v; leave it out for the default", name, out).With(fault.BadExpiry))
	}
	return out, err
}

// Set writes one entry.
func (s *cacheServer) Set(ctx context.Context, in *mechav1.CacheSetRequest) (*mechav1.CacheSetResponse, error) {
	o, err := cacheOptions(in.GetOptions())
	if err != nil {
		return nil, err
	}
	var epoch *cache.Epoch
	if e := in.GetIfEpoch(); e != nil {
		epoch = &cache.Epoch{Topic: e.GetTopic(), Partition: e.GetPartition(), Number: e.GetEpoch()}
	}
	version, err := s.s.Set(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey(), in.GetValue(), o, epoch)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheSetResponse{Version: version}, nil
}

// SetMulti writes several entries.
func (s *cacheServer) SetMulti(ctx context.Context, in *mechav1.CacheSetMultiRequest) (*mechav1.CacheSetMultiResponse, error) {
	o, err := cacheOptions(in.GetOptions())
	if err != nil {
		return nil, err
	}
	items := make([]cache.Item, len(in.GetItems()))
	for i, it := range in.GetItems() {
		items[i] = cache.Item{Key: it.GetKey(), Value: it.GetValue()}
	}
	versions, err := s.s.SetMulti(ctx, in.GetCacheName(), in.GetNamespace(), items, o)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheSetMultiResponse{Versions: versions}, nil
}

// Delete removes one entry.
func (s *cacheServer) Delete(ctx context.Context, in *mechav1.CacheDeleteRequest) (*mechav1.CacheDeleteResponse, error) {
	if err := s.s.Delete(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey()); err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheDeleteResponse{}, nil
}

// Touch gives an entry a new time to live.
func (s *cacheServer) Touch(ctx context.Context, in *mechav1.CacheTouchRequest) (*mechav1.CacheTouchResponse, error) {
	ttl, err := positive("ttl", in.GetTtl())
	if err != nil {
		return nil, err
	}
	found, err := s.s.Touch(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey(), ttl)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheTouchResponse{Found: found}, nil
}

// Increment adds to a number.
func (s *cacheServer) Increment(ctx context.Context, in *mechav1.CacheIncrementRequest) (*mechav1.CacheIncrementResponse, error) {
	ttl, err := positive("ttl", in.GetTtl())
	if err != nil {
		return nil, err
	}
	n, err := s.s.Increment(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey(), in.GetDelta(), in.GetInitial(), ttl)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheIncrementResponse{Value: n}, nil
}

// CompareAndSet writes an entry over a version.
func (s *cacheServer) CompareAndSet(ctx context.Context, in *mechav1.CacheCompareAndSetRequest) (*mechav1.CacheCompareAndSetResponse, error) {
	o, err := cacheOptions(in.GetOptions())
	if err != nil {
		return nil, err
	}
	version, done, err := s.s.CompareAndSet(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey(), in.GetValue(), in.GetVersion(), o)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheCompareAndSetResponse{Swapped: done, Version: version}, nil
}

// GetOrLoad reads an entry or gives a lease.
func (s *cacheServer) GetOrLoad(ctx context.Context, in *mechav1.CacheGetOrLoadRequest) (*mechav1.CacheGetOrLoadResponse, error) {
	o, err := cacheOptions(in.GetOptions())
	if err != nil {
		return nil, err
	}
	timeout, err := positive("load_timeout", in.GetLoadTimeout())
	if err != nil {
		return nil, err
	}
	wait, err := duration("wait", in.GetWait())
	if err != nil {
		return nil, err
	}
	if in.GetWait() != nil && wait == 0 {
		wait = time.Nanosecond // 0 would be taken for the default
	}
	e, lease, err := s.s.GetOrLoad(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey(), o, timeout, wait)
	if err != nil {
		return nil, apierr.Native(err)
	}
	out := &mechav1.CacheGetOrLoadResponse{Entry: cacheEntry(e)}
	if lease != nil {
		out.Lease = &mechav1.CacheLease{Id: lease.ID, Deadline: moment(lease.Deadline)}
	}
	return out, nil
}

// Fill answers a lease.
func (s *cacheServer) Fill(ctx context.Context, in *mechav1.CacheFillRequest) (*mechav1.CacheFillResponse, error) {
	var with cache.Filling
	switch r := in.GetResult().(type) {
	case *mechav1.CacheFillRequest_Value:
		with.Value = r.Value
	case *mechav1.CacheFillRequest_Absent:
		if with.Absent = r.Absent; !r.Absent {
			return nil, apierr.Native(fault.New("nativeapi.Fill", fault.Invalid, "absent is false: give a value, absent true, or an error").With(cache.BadOption))
		}
	case *mechav1.CacheFillRequest_Error:
		if with.Error = r.Error; with.Error == "" {
			with.Error = "no reason given"
		}
	default:
		return nil, apierr.Native(fault.New("nativeapi.Fill", fault.Invalid, "give a value, absent true, or an error").With(cache.BadOption))
	}
	stored, err := s.s.Fill(ctx, in.GetCacheName(), in.GetNamespace(), in.GetKey(), in.GetLease(), with)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheFillResponse{Stored: stored}, nil
}

// Invalidate drops entries.
func (s *cacheServer) Invalidate(ctx context.Context, in *mechav1.CacheInvalidateRequest) (*mechav1.CacheInvalidateResponse, error) {
	var what cache.Invalidation
	switch w := in.GetWhat().(type) {
	case *mechav1.CacheInvalidateRequest_Tags:
		what.Tags = w.Tags.GetTags()
	case *mechav1.CacheInvalidateRequest_Prefix:
		what.Prefix = w.Prefix
	case *mechav1.CacheInvalidateRequest_All:
		what.All = w.All
	}
	if err := s.s.Invalidate(ctx, in.GetCacheName(), in.GetNamespace(), what); err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheInvalidateResponse{}, nil
}

// Stats counts.
func (s *cacheServer) Stats(_ context.Context, in *mechav1.CacheStatsRequest) (*mechav1.CacheStatsResponse, error) {
	n, err := s.s.Stats(in.GetCacheName(), in.GetNamespace(), in.GetNamespace() == "")
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.CacheStatsResponse{NearHits: n.NearHits, SharedHits: n.SharedHits, Misses: n.Misses, Stale: n.Stale, Absent: n.Absent,
		Loads: n.Loads, Coalesced: n.Coalesced, LoadFailures: n.LoadFailures, Evictions: n.Evictions, NearEntries: n.NearEntries, NearBytes: n.NearBytes,
		StalenessBound: durationpb.New(n.Staleness), LoadTime: durationpb.New(n.LoadTime)}, nil
}

// Watch tells which entries change.
func (s *cacheServer) Watch(in *mechav1.CacheWatchRequest, out grpc.ServerStreamingServer[mechav1.CacheWatchResponse]) error {
	err := s.s.Watch(out.Context(), in.GetCacheName(), in.GetNamespace(), in.GetPrefix(), func(keys []string, all bool) error {
		return out.Send(&mechav1.CacheWatchResponse{Keys: keys, All: all})
	})
	if err != nil {
		return apierr.Native(err)
	}
	return nil
}
