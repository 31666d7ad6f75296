package group

import (
	"cmp"
	"context"
	"slices"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Member is a seat of a group, as the ledger has it. It may be that of a member that died a moment ago.
type Member struct {
	Name    string
	Topics  []string
	Leaving bool
}

// Owner is who has a partition. No Seat means nobody.
type Owner struct {
	Seat  string
	Epoch uint64
}

// Members lists a group's members, in the order they joined, and the owners of its partitions.
func Members(ctx context.Context, ledger block.Ledger, group string) ([]Member, map[Part]Owner, error) {
	type joined struct {
		Member
		at uint64
	}
	var list []joined
	owners := map[Part]Owner{}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	told := false
	err := ledger.LedgerWatch(ctx, watchPrefix(group), func(entries []block.LedgerEntry, _ bool) {
		if told {
			return
		}
		told = true
		for _, e := range entries {
			switch kind, name, p, ok := splitKey(group, e.Key); {
			case !ok || e.Removed:
			case kind == kindSeat:
				if r, err := parseSeat(e.Value); err == nil {
					list = append(list, joined{Member{Name: name, Topics: r.Topics, Leaving: r.Leaving}, r.Joined})
				}
			case kind == kindOwner:
				if r, err := parseOwner(e.Value); err == nil {
					owners[p] = Owner{Seat: r.Seat, Epoch: r.Epoch}
				}
			}
		}
		stop()
	})
	if !told {
		return nil, nil, fault.Wrap("group.Members", fault.Unavailable, err)
	}
	slices.SortFunc(list, func(a, b joined) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.Name, b.Name))
	})
	members := make([]Member, len(list))
	for i, m := range list {
		members[i] = m.Member
	}
	return members, owners, nil
}

// Committed is the progress that was last committed of each partition; nil where nobody ever did.
func Committed(ctx context.Context, ledger block.Ledger, group string, parts []Part) ([][]byte, error) {
	out := make([][]byte, len(parts))
	for i, p := range parts {
		e, err := ledger.LedgerGet(ctx, progressKey(group, p))
		if err != nil {
			return nil, fault.Wrap("group.Committed", fault.Unavailable, err)
		}
		if e.Revision == 0 {
			continue
		}
		if _, out[i], err = parseProgress(e.Value); err != nil {
			return nil, fault.New("group.Committed", fault.Internal, "the progress of partition %s cannot be read", p).Because(err)
		}
	}
	return out, nil
}
