package httpapi_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// lockService keeps what it was asked and answers as told.
type lockService struct {
	asked  string
	ok     bool
	status block.UnlockStatus
	err    error
}

func (l *lockService) TryLock(_ context.Context, store, resource, owner string, seconds int32) (bool, error) {
	l.asked = fmt.Sprintf("lock %s %s %s %d", store, resource, owner, seconds)
	return l.ok, l.err
}

func (l *lockService) Unlock(_ context.Context, store, resource, owner string) (block.UnlockStatus, error) {
	l.asked = fmt.Sprintf("unlock %s %s %s", store, resource, owner)
	return l.status, l.err
}

func TestLock(t *testing.T) {
	because := func(c fault.Code, r fault.Reason) error { return fault.New("op", c, "words").With(r) }
	for name, tt := range map[string]struct {
		target, body string
		set          lockService
		asked        string
		status       int
		want         string
	}{
		"taken":       {"/v1.0-alpha1/lock/s", `{"resourceId":"r","lockOwner":"o","expiryInSeconds":5}`, lockService{ok: true}, "lock s r o 5", 200, `{"success":true}`},
		"refused":     {"/v1.0-alpha1/lock/s", `{"resource_id":"r","lock_owner":"o","expiry_in_seconds":"5","extra":1}`, lockService{}, "lock s r o 5", 200, `{"success":false}`},
		"store in it": {"/v1.0-alpha1/lock/s", `{"storeName":"other"}`, lockService{}, "lock s   0", 200, `{"success":false}`},
		"no body":     {"/v1.0-alpha1/lock/s", "", lockService{}, "lock s   0", 200, `{"success":false}`},
		"no JSON":     {"/v1.0-alpha1/lock/s", "{", lockService{}, "", 400, ""},
		"unlocked":    {"/v1.0-alpha1/unlock/s", `{"resourceId":"r","lockOwner":"o"}`, lockService{}, "unlock s r o", 200, `{"status":0}`},
		"of another":  {"/v1.0-alpha1/unlock/s", `{"resourceId":"r","lockOwner":"o"}`, lockService{status: block.LockOfAnother}, "unlock s r o", 200, `{"status":2}`},
		"unlock ":     {"/v1.0-alpha1/unlock/s", `[]`, lockService{}, "", 400, ""},
		"none":        {"/v1.0-alpha1/lock/s", "", lockService{err: because(fault.NotReady, fault.NoComponents)}, "lock s   0", 500, `{"errorCode":"ERR_LOCK_STORE_NOT_CONFIGURED","message":"lock store is not configured"}`},
		"another":     {"/v1.0-alpha1/unlock/s", "", lockService{err: because(fault.NotFound, fault.NoSuchComponent)}, "unlock s  ", 400, `{"errorCode":"ERR_LOCK_STORE_NOT_FOUND","message":"lock store s not found"}`},
		"malformed":   {"/v1.0-alpha1/lock/s", "", lockService{err: because(fault.Invalid, fault.BadExpiry)}, "lock s   0", 400, `{"errorCode":"ERR_MALFORMED_REQUEST","message":"words"}`},
		"illegal":     {"/v1.0-alpha1/lock/s", "", lockService{err: because(fault.Invalid, fault.IllegalKey)}, "lock s   0", 500, `{"errorCode":"ERR_TRY_LOCK","message":"failed to try acquiring lock: words"}`},
		"broken":      {"/v1.0-alpha1/unlock/s", "", lockService{err: because(fault.Unavailable, "")}, "unlock s  ", 500, `{"errorCode":"ERR_UNLOCK","message":"failed to release lock: words"}`},
		"not in v1.0": {"/v1.0/lock/s", "", lockService{ok: true}, "", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit()
			*k.lock = tt.set
			if name == "not in v1.0" {
				k = newKit(withInvoke(nobody))
			}
			x := k.do("POST", tt.target, tt.body)
			if x.Status != tt.status || tt.want != "" && string(x.Out) != tt.want || k.lock.asked != tt.asked {
				t.Errorf("%d %q, asked %q; want %d %q, %q", x.Status, x.Out, k.lock.asked, tt.status, tt.want, tt.asked)
			}
			if x.Answer.Get("Content-Type") != "application/json" {
				t.Errorf("content type %q", x.Answer.Get("Content-Type"))
			}
		})
	}
}
