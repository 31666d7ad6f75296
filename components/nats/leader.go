package nats

import (
	"context"
	"encoding/json"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/fault"
)

// storedMessage is a message as the stream's leader gives it.
type storedMessage struct {
	Subject string `json:"subject"`
	Seq     uint64 `json:"seq"`
	Header  []byte `json:"hdrs"`
	Data    []byte `json:"data"`
}

func (m *storedMessage) version(op fault.Op) (version, error) {
	v := version{seq: m.Seq, value: m.Data}
	if len(m.Header) > 0 {
		h, err := natsgo.DecodeHeadersMsg(m.Header)
		if err != nil {
			return version{}, fault.New(op, fault.Internal, "the server answers a read with headers that are none").Because(err)
		}
		v.read(h)
	}
	return v, nil
}

// messageRequest names a message: the last of a subject, or the first from a sequence on that
// matches a filter.
type messageRequest struct {
	LastFor string `json:"last_by_subj,omitempty"`
	Seq     uint64 `json:"seq,omitempty"`
	NextFor string `json:"next_by_subj,omitempty"`
	Batch   int    `json:"batch,omitempty"`     // direct reads only
	Bytes   int    `json:"max_bytes,omitempty"` // direct reads only
	// Since stands for the sequence of the first message from a time on.
	Since *time.Time `json:"start_time,omitempty"`
}

// leader asks the stream's leader for a message; nil when there is none. Direct reads of a
// replicated stream may be answered by any replica, and the client library reads directly
// whenever the stream allows it: so the request is made here.
func (s *state) leader(ctx context.Context, op fault.Op, r *messageRequest) (*storedMessage, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fault.Wrap(op, fault.Internal, err)
	}
	answers, err := s.ask(ctx, op, &natsgo.Msg{Subject: "$JS.API.STREAM.MSG.GET." + s.stream, Data: body})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error   *apiError      `json:"error"`
		Message *storedMessage `json:"message"`
	}
	switch err := json.Unmarshal(answers[0].Data, &answer); {
	case err != nil || answer.Error == nil && answer.Message == nil:
		return nil, fault.New(op, fault.Internal, "the server answers a read with %.100q", answers[0].Data).Because(err)
	case answer.Error != nil && answer.Error.ErrCode == codeNoMessage:
		return nil, nil
	case answer.Error != nil && answer.Error.ErrCode == codeStreamNotFound:
		s.made.Store(nil) // somebody removed the bucket: it holds nothing, and the next call makes it
		return nil, nil
	case answer.Error != nil:
		return nil, refusal(op, "read of bucket "+s.stream, answer.Error)
	}
	return answer.Message, nil
}
