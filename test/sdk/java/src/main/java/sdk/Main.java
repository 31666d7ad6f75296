package sdk;

import static sdk.Report.expect;
import static sdk.Report.refused;

import io.dapr.client.DaprClient;
import io.dapr.client.DaprClientBuilder;
import io.dapr.client.DaprPreviewClient;
import io.dapr.config.Properties;
import io.dapr.exceptions.DaprException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Set;
import java.util.TreeSet;

/**
 * Walks the official Java SDK through the scenario of test/sdk: "open" between an HTTP app and a gRPC
 * app that it serves itself, "locked" through TLS with an API token. It prints one line per step and
 * exits with 1 if any failed.
 */
public final class Main {
  private Main() {}

  /** @param args the mode */
  public static void main(String[] args) throws Exception {
    Report r = new Report();
    if (args[0].equals("open")) {
      open(r);
    } else {
      locked(r);
    }
    System.out.printf("DONE %d passed, %d failed%n", r.passed, r.failed);
    System.exit(r.failed > 0 ? 1 : 0);
  }

  private static DaprClientBuilder beside(String side) {
    return new DaprClientBuilder()
        .withPropertyOverride(Properties.HTTP_PORT, System.getenv(side + "_HTTP_PORT"))
        .withPropertyOverride(Properties.GRPC_PORT, System.getenv(side + "_GRPC_PORT"))
        .withPropertyOverride(Properties.GRPC_ENABLE_KEEP_ALIVE, "true")
        .withPropertyOverride(Properties.GRPC_KEEP_ALIVE_WITHOUT_CALLS, "true");
  }

  private static void open(Report r) throws Exception {
    Apps apps = new Apps();
    apps.serveWeb(Integer.parseInt(System.getenv("WEB_APP_PORT")));
    apps.serveRpc(Integer.parseInt(System.getenv("RPC_APP_PORT")));
    DaprClient web = beside("WEB").build();
    DaprClient rpc = beside("RPC").build();
    DaprPreviewClient preview = beside("RPC").buildPreviewClient();
    r.step("wait for the sidecars", () -> {
      web.waitForSidecar(10_000).block();
      rpc.waitForSidecar(10_000).block();
      healthy("WEB");
      healthy("RPC");
    });
    for (String store : new String[] {"mem-state", "emb-state", "redis-state"}) {
      r.under(store, () -> new StateSteps(rpc, store).run(r));
    }
    for (String pubsub : Apps.PUBSUBS) {
      r.under(pubsub, () -> new PubSubSteps(rpc, preview, pubsub, apps.inbox).run(r));
    }
    BlockSteps blocks = new BlockSteps(rpc, preview, apps.inbox);
    for (String store : new String[] {"emb-config", "redis-config"}) {
      r.under(store, () -> blocks.configuration(r, store));
    }
    for (String store : new String[] {"emb-lock", "redis-lock"}) {
      r.under(store, () -> blocks.locks(r, store));
    }
    r.under("secrets", () -> blocks.secrets(r));
    r.under("bindings", () -> blocks.bindings(r));
    r.step("one event reaches both apps", () -> {
      for (DaprClient from : new DaprClient[] {web, rpc}) {
        from.publishEvent("emb-pubsub", "shared", "both").block();
        expect("at the HTTP app", apps.inbox.take("web/emb-pubsub/shared").data(), "both");
        expect("at the gRPC app", apps.inbox.take("rpc/emb-pubsub/shared").data(), "\"both\"");
      }
    });
    r.under("invoke", () -> InvokeSteps.run(r, web, rpc));
    r.step("metadata", () -> { // the SDK can read it and has no call to set an entry
      var metadata = rpc.getMetadata().block();
      expect("id", metadata.getId(), System.getenv("RPC_APP_ID"));
      Set<String> components = new TreeSet<>();
      metadata.getComponents().forEach(c -> components.add(c.getName() + " " + c.getType() + " " + c.getVersion()));
      expect("the components", String.join(",", components), System.getenv("COMPONENTS"));
      expect("there are subscriptions", metadata.getSubscriptions().isEmpty(), false);
    });
    r.step("shutdown of the HTTP app's sidecar", () -> web.shutdown().block());
  }

  private static void healthy(String side) throws Exception {
    HttpRequest request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + System.getenv(side + "_HTTP_PORT") + "/v1.0/healthz")).build();
    while (HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.discarding()).statusCode() != 204) {
      Thread.sleep(20);
    }
  }

  /** The endpoints, TLS roots of gRPC and the token come from the environment. */
  private static void locked(Report r) {
    // The JVM's HTTP client trusts only a key store, so HTTP goes to the port behind the TLS front.
    String http = "http://127.0.0.1:" + System.getenv("LOCKED_HTTP_PORT");
    DaprClient client = new DaprClientBuilder().withPropertyOverride(Properties.HTTP_ENDPOINT, http).build();
    r.step("wait for the sidecar", () -> client.waitForSidecar(10_000).block());
    r.step("a call with the token", () -> {
      client.saveState("mem-state", "k", "v").block();
      expect("the value", client.getState("mem-state", "k", String.class).block().getValue(), "v");
    });
    r.step("HTTP with the token", () -> {
      DaprException e = refused(DaprException.class, () -> client.invokeMethod("no-such-app", "x", null, io.dapr.client.domain.HttpExtension.GET, byte[].class).block());
      expect("the error code", e.getErrorCode(), "ERR_DIRECT_INVOKE");
    });
    r.step("a wrong token", () -> {
      DaprClient other = new DaprClientBuilder().withPropertyOverride(Properties.HTTP_ENDPOINT, http).withPropertyOverride(Properties.API_TOKEN, "guess").build();
      DaprException e = refused(DaprException.class, () -> other.getState("mem-state", "k", String.class).block());
      expect("the error code", e.getErrorCode(), "UNAUTHENTICATED");
      DaprException h = refused(DaprException.class, () -> other.invokeMethod("no-such-app", "x", null, io.dapr.client.domain.HttpExtension.GET, byte[].class).block());
      expect("the status", h.getHttpStatusCode(), 401);
    });
    r.step("shutdown", () -> client.shutdown().block());
  }
}
