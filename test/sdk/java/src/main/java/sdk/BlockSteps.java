package sdk;

import static sdk.Report.expect;
import static sdk.Report.refused;

import io.dapr.client.DaprClient;
import io.dapr.client.DaprPreviewClient;
import io.dapr.client.domain.ConfigurationItem;
import io.dapr.client.domain.SubscribeConfigurationResponse;
import io.dapr.client.domain.UnlockResponseStatus;
import io.dapr.exceptions.DaprException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;

/** Configuration, locks, secrets and bindings by the SDK's client. Locks are in its preview client. */
final class BlockSteps {
  private static final HttpClient HTTP = HttpClient.newHttpClient();

  private final DaprClient client;
  private final DaprPreviewClient preview;
  private final Report.Inbox<Apps.Event> inbox;

  BlockSteps(DaprClient client, DaprPreviewClient preview, Report.Inbox<Apps.Event> inbox) {
    this.client = client;
    this.preview = preview;
    this.inbox = inbox;
  }

  /** Writes a configuration item as its operator does, for the SDKs only read. */
  private static void write(String store, String key, String value) throws Exception {
    HttpRequest put = HttpRequest.newBuilder(URI.create(System.getenv("OPERATOR") + "/" + store + "/" + key))
        .PUT(HttpRequest.BodyPublishers.ofString(value)).build();
    expect("the operator's status", HTTP.send(put, HttpResponse.BodyHandlers.ofString()).statusCode(), 200);
  }

  private static void fails(String code, Callable<?> call) throws Exception {
    DaprException e = refused(DaprException.class, call);
    expect("the error code", e.getErrorCode(), code);
  }

  void configuration(Report r, String store) {
    String a = System.getenv("RPC_APP_ID") + "-a";
    String b = System.getenv("RPC_APP_ID") + "-b";
    r.step("get", () -> {
      write(store, a, "1");
      write(store, b, "é<>&");
      expect("one value", client.getConfiguration(store, a).block().getValue(), "1");
      Map<String, String> got = new TreeMap<>();
      Map<String, ConfigurationItem> items = client.getConfiguration(store, List.of(a, b, a + "-missing"), Map.of()).block();
      items.forEach((k, item) -> got.put(k, item.getValue()));
      expect("the items", got, new TreeMap<>(Map.of(a, "1", b, "é<>&")));
    });
    r.step("subscribe and unsubscribe", () -> subscribe(store, a, b));
    r.step("an unknown store", () -> fails("INVALID_ARGUMENT", () -> client.getConfiguration("no-such-store", a).block()));
  }

  private void subscribe(String store, String a, String b) throws Exception {
    Report.Inbox<String> told = new Report.Inbox<>();
    client.subscribeConfiguration(store, a).subscribe(c -> keep(told, "first", c), e -> told.put("errors", e.toString()), () -> told.put("first ended", ""));
    client.subscribeConfiguration(store, List.of(a, b), Map.of()).subscribe(c -> keep(told, "second", c), e -> told.put("errors", e.toString()));
    String first = told.take("first id");
    String second = told.take("second id");
    write(store, a, "2");
    expect("the change", told.take("first"), a + "=2");
    expect("the change", told.take("second"), a + "=2");
    expect("unsubscribed", client.unsubscribeConfiguration(first, store).block().getIsUnsubscribed(), true);
    told.take("first ended");
    write(store, a, "3");
    expect("the next change", told.take("second"), a + "=3");
    expect("what an ended subscription was told", told.size("first"), 0);
    expect("unsubscribed", client.unsubscribeConfiguration(second, store).block().getIsUnsubscribed(), true);
    expect("unsubscribed twice", client.unsubscribeConfiguration(second, store).block().getIsUnsubscribed(), false);
    expect("errors of the streams", told.size("errors"), 0);
  }

  /** The first message of a stream has no items and says that the sidecar has subscribed. */
  private static void keep(Report.Inbox<String> told, String name, SubscribeConfigurationResponse change) {
    if (change.getItems().isEmpty()) {
      told.put(name + " id", change.getSubscriptionId());
    }
    change.getItems().forEach((k, item) -> told.put(name, k + "=" + item.getValue()));
  }

  void locks(Report r, String store) {
    r.step("one owner at a time", () -> {
      expect("taken", preview.tryLock(store, "turn", "one", 60).block(), true);
      expect("taken twice", preview.tryLock(store, "turn", "one", 60).block(), false);
      expect("taken by another", preview.tryLock(store, "turn", "two", 60).block(), false);
      expect("unlocking by another", preview.unlock(store, "turn", "two").block(), UnlockResponseStatus.LOCK_BELONG_TO_OTHERS);
      expect("unlocking", preview.unlock(store, "turn", "one").block(), UnlockResponseStatus.SUCCESS);
      expect("unlocking twice", preview.unlock(store, "turn", "one").block(), UnlockResponseStatus.LOCK_UNEXIST);
    });
    r.step("a lock ends by itself", () -> {
      expect("taken", preview.tryLock(store, "brief", "one", 1).block(), true);
      while (!preview.tryLock(store, "brief", "two", 60).block()) {
        Thread.sleep(50);
      }
      expect("unlocking", preview.unlock(store, "brief", "two").block(), UnlockResponseStatus.SUCCESS);
    });
    r.step("an unknown store", () -> fails("INVALID_ARGUMENT", () -> preview.tryLock("no-such-store", "turn", "one", 60).block()));
  }

  void secrets(Report r) {
    Map<String, String> pair = Map.of("user", "u", "password", "p");
    r.step("get", () -> {
      expect("a secret", client.getSecret("file-secrets", "plain").block(), Map.of("plain", "hidden"));
      expect("one of two values", client.getSecret("file-secrets", "pair").block(), pair);
    });
    r.step("get all", () -> expect("the secrets", client.getBulkSecret("file-secrets").block(), Map.of("plain", Map.of("plain", "hidden"), "pair", pair)));
    r.step("a missing secret", () -> fails("INTERNAL", () -> client.getSecret("file-secrets", "missing").block()));
    r.step("an unknown store", () -> fails("INVALID_ARGUMENT", () -> client.getBulkSecret("no-such-store").block()));
  }

  void bindings(Report r) {
    Map<String, String> file = Map.of("fileName", "java/file.txt");
    r.step("output: create, get, delete", () -> {
      byte[] data = "line é\n".getBytes(StandardCharsets.UTF_8);
      String created = new String(client.invokeBinding("files", "create", data, file).block(), StandardCharsets.UTF_8);
      expect("what creating says", created.contains("java/file.txt"), true);
      expect("the file", new String(client.invokeBinding("files", "get", new byte[0], file).block(), StandardCharsets.UTF_8), "line é\n");
      client.invokeBinding("files", "delete", new byte[0], file).block();
      fails("INTERNAL", () -> client.invokeBinding("files", "get", new byte[0], file).block());
    });
    r.step("output: an unknown operation", () -> fails("INTERNAL", () -> client.invokeBinding("files", "sing", new byte[0], file).block()));
    for (String app : List.of("rpc", "web")) {
      r.step("input: events come to the " + app + " app", () -> {
        Apps.Event first = inbox.take(app + "/tick");
        Apps.Event second = inbox.take(app + "/tick");
        expect("data", first.data(), "");
        expect("it is the time", first.source() != null && !first.source().equals(second.source()), true);
      });
    }
  }
}
