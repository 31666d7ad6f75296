package sdk;

import static sdk.Report.expect;
import static sdk.Report.refused;

import io.dapr.client.DaprClient;
import io.dapr.client.DaprPreviewClient;
import io.dapr.client.Subscription;
import io.dapr.client.SubscriptionListener;
import io.dapr.client.domain.CloudEvent;
import io.dapr.client.domain.PublishEventRequest;
import io.dapr.exceptions.DaprException;
import io.dapr.utils.TypeRef;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import reactor.core.publisher.Mono;

/** Publishing by the SDK's client; receiving by the apps and by streams. */
final class PubSubSteps {
  private final DaprClient client;
  private final DaprPreviewClient preview;
  private final String pubsub;
  private final Report.Inbox<Apps.Event> inbox;

  PubSubSteps(DaprClient client, DaprPreviewClient preview, String pubsub, Report.Inbox<Apps.Event> inbox) {
    this.client = client;
    this.preview = preview;
    this.pubsub = pubsub;
    this.inbox = inbox;
  }

  private Apps.Event take(String name) throws InterruptedException {
    return inbox.take("rpc/" + pubsub + "/" + name);
  }

  private void publish(String topic, Object data, String contentType, Map<String, String> metadata) {
    client.publishEvent(new PublishEventRequest(pubsub, topic, data).setContentType(contentType).setMetadata(metadata)).block();
  }

  void run(Report r) {
    r.step("an object", () -> {
      client.publishEvent(pubsub, "rpc-plain", Map.of("order", 17)).block();
      expect("the event", take("plain"), new Apps.Event("rpc-plain", "java-rpc", "com.dapr.event.sent", "application/json", "{\"order\":17}"));
    });
    r.step("text", () -> {
      publish("rpc-plain", "hällo".getBytes("UTF-8"), "text/plain", Map.of());
      expect("the event", take("plain"), new Apps.Event("rpc-plain", "java-rpc", "com.dapr.event.sent", "text/plain", "hällo"));
    });
    r.step("an own CloudEvent", () -> {
      CloudEvent<String> own = new CloudEvent<>("own-1", "me", "mine", "1.0", "text/plain", "mine");
      publish("rpc-plain", own, CloudEvent.CONTENT_TYPE, Map.of());
      expect("the event", take("plain"), new Apps.Event("rpc-plain", "me", "mine", "text/plain", "mine"));
    });
    r.step("bulk publish", () -> {
      expect("failed entries", preview.publishEvents(pubsub, "rpc-bulk", "text/plain", List.of("one", "two", "three")).block().getFailedEntries(), List.of());
      Set<String> got = new TreeSet<>();
      for (int i = 0; i < 3; i++) {
        got.add(take("bulk").data());
      }
      expect("the events", got, Set.of("one", "two", "three"));
    });
    r.step("rules route", () -> {
      for (String[] kind : new String[][] {{"special", "special"}, {"other", "common"}}) {
        publish("rpc-routed", kind[0].getBytes("UTF-8"), "text/plain", Map.of("cloudevent.type", kind[0]));
        expect("data", take(kind[1]).data(), kind[0]);
      }
    });
    r.step("a declarative subscription with a rule", () -> {
      for (String[] kind : new String[][] {{"special", "declared-special"}, {"other", "declared"}}) {
        publish("declared", kind[0].getBytes("UTF-8"), "text/plain", Map.of("cloudevent.type", kind[0]));
        expect("data", take(kind[1]).data(), kind[0]);
      }
    });
    r.step("retried until taken", () -> {
      publish("rpc-retried", "again".getBytes("UTF-8"), "text/plain", Map.of());
      expect("data", take("retried").data(), "again");
    });
    r.step("dropped to the dead-letter topic", () -> {
      publish("rpc-dropped", "unwanted".getBytes("UTF-8"), "text/plain", Map.of());
      expect("data", take("dead").data(), "unwanted");
    });
    r.step("an unknown pubsub", () -> {
      DaprException e = refused(DaprException.class, () -> client.publishEvent("no-such-pubsub", "t", "x").block());
      expect("the error code", e.getErrorCode(), "INVALID_ARGUMENT");
    });
    r.step("streaming, with a retry", this::stream);
  }

  private void stream() throws Exception {
    Report.Inbox<String> events = new Report.Inbox<>();
    Set<String> seen = ConcurrentHashMap.newKeySet();
    SubscriptionListener<Map<String, Integer>> listener = new SubscriptionListener<>() {
      @Override
      public Mono<Status> onEvent(CloudEvent<Map<String, Integer>> event) {
        if (event.getData().get("n") == 7 && seen.add(event.getId())) {
          return Mono.just(Status.RETRY);
        }
        events.put("stream", String.valueOf(event.getData().get("n")));
        return Mono.just(Status.SUCCESS);
      }

      @Override
      public void onError(RuntimeException e) {
        events.put("errors", e.toString());
      }
    };
    Subscription<?> subscription = preview.subscribeToEvents(pubsub, "stream", listener, new TypeRef<Map<String, Integer>>() {});
    try {
      // The SDK returns before the sidecar has subscribed.
      Thread.sleep(200);
      Set<String> want = new TreeSet<>();
      Set<String> got = new TreeSet<>();
      for (int i = 0; i < 20; i++) {
        client.publishEvent(pubsub, "stream", Map.of("n", i)).block();
        want.add(String.valueOf(i));
      }
      for (int i = 0; i < 20; i++) {
        got.add(events.take("stream"));
      }
      expect("the events", got, want);
      expect("the retried event was seen first", seen.size(), 1);
    } finally {
      subscription.close();
    }
  }
}
