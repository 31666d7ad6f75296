package sdk;

import static sdk.Report.expect;
import static sdk.Report.refused;

import io.dapr.client.DaprClient;
import io.dapr.client.domain.SaveStateRequest;
import io.dapr.client.domain.State;
import io.dapr.client.domain.StateOptions;
import io.dapr.client.domain.TransactionalStateOperation;
import io.dapr.exceptions.DaprException;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** State by the SDK's client. */
final class StateSteps {
  private final DaprClient client;
  private final String store;

  StateSteps(DaprClient client, String store) {
    this.client = client;
    this.store = store;
  }

  private <T> State<T> get(String key, Class<T> type) {
    return client.getState(store, key, type).block();
  }

  private void value(String key, String want) {
    expect("the value of " + key, get(key, String.class).getValue(), want);
  }

  private void aborted(Runnable write) throws Exception {
    DaprException e = refused(DaprException.class, () -> {
      write.run();
      return "success";
    });
    expect("the error code", e.getErrorCode(), "ABORTED");
  }

  void run(Report r) {
    r.step("save and get", () -> {
      client.saveState(store, "object", Map.of("n", 1)).block();
      expect("the value", get("object", Map.class).getValue(), Map.of("n", 1));
      client.saveState(store, "text", "é<>&").block();
      value("text", "é<>&");
      value("never-written", null);
    });
    r.step("bytes under an odd key", () -> {
      byte[] data = {0, 1, -1, 34, 10};
      // Without a content type the SDK declares bytes to be JSON, and these are none.
      State<byte[]> item = new State<>("a/b é", data, null, Map.of("contentType", "application/octet-stream"), null);
      client.saveBulkState(store, List.of(item)).block();
      expect("equality", Arrays.equals(get("a/b é", byte[].class).getValue(), data), true);
    });
    r.step("etags guard", () -> {
      client.saveState(store, "guarded", "one").block();
      String first = get("guarded", String.class).getEtag();
      client.saveState(store, "guarded", first, "two", null).block();
      aborted(() -> client.saveState(store, "guarded", first, "three", null).block());
      aborted(() -> client.deleteState(store, "guarded", first, null).block());
      value("guarded", "two");
      client.deleteState(store, "guarded", get("guarded", String.class).getEtag(), null).block();
      value("guarded", null);
    });
    r.step("the first write wins", () -> {
      StateOptions once = new StateOptions(StateOptions.Consistency.STRONG, StateOptions.Concurrency.FIRST_WRITE);
      client.deleteState(store, "first").block();
      client.saveState(store, "first", null, "one", once).block();
      aborted(() -> client.saveState(store, "first", null, "two", once).block());
      value("first", "one");
    });
    r.step("bulk", () -> { // the SDK cannot delete several keys in one call
      client.saveBulkState(store, List.of(new State<>("m1", "one", null, null), new State<>("m2", "two", null, null))).block();
      TreeMap<String, String> got = new TreeMap<>();
      for (State<String> s : client.getBulkState(store, List.of("m1", "m2", "m3"), String.class).block()) {
        got.put(s.getKey(), s.getError() + " " + s.getValue());
      }
      expect("the items", got, new TreeMap<>(Map.of("m1", "null one", "m2", "null two", "m3", "null null")));
    });
    r.step("a transaction is all or nothing", this::transaction);
    r.step("expiry", () -> {
      client.saveBulkState(new SaveStateRequest(store).setStates(new State<>("brief", "soon gone", null, Map.of("ttlInSeconds", "1"), null))).block();
      value("brief", "soon gone");
      while (get("brief", String.class).getValue() != null) {
        Thread.sleep(100);
      }
    });
    r.step("an unknown store", () -> {
      DaprException e = refused(DaprException.class, () -> client.getState("no-such-store", "k", String.class).block());
      expect("the error code", e.getErrorCode(), "INVALID_ARGUMENT");
    });
  }

  private void transaction() throws Exception {
    client.saveState(store, "t2", "goes").block();
    client.executeStateTransaction(store, List.of(upsert("t1", "here", null),
        new TransactionalStateOperation<>(TransactionalStateOperation.OperationType.DELETE, new State<>("t2")))).block();
    value("t1", "here");
    value("t2", null);
    DaprException e = refused(DaprException.class, () -> client.executeStateTransaction(store, List.of(upsert("t3", "never", null), upsert("t1", "never", "999999"))).block());
    expect("the error code", e.getErrorCode(), "INTERNAL");
    value("t3", null);
    value("t1", "here");
  }

  private static TransactionalStateOperation<String> upsert(String key, String value, String etag) {
    return new TransactionalStateOperation<>(TransactionalStateOperation.OperationType.UPSERT, new State<>(key, value, etag));
  }
}
