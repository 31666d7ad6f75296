package sdk;

import static sdk.Report.expect;
import static sdk.Report.refused;

import com.fasterxml.jackson.databind.JsonNode;
import com.google.protobuf.Empty;
import io.dapr.client.DaprClient;
import io.dapr.client.DaprHttp;
import io.dapr.client.domain.HttpExtension;
import io.dapr.exceptions.DaprException;
import io.dapr.v1.AppCallbackHealthCheckGrpc;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;

/** Service invocation: the SDK calls over HTTP, and proxies gRPC stubs. */
final class InvokeSteps {
  private InvokeSteps() {}

  static void run(Report r, DaprClient web, DaprClient rpc) {
    String webApp = System.getenv("WEB_APP_ID");
    String rpcApp = System.getenv("RPC_APP_ID");
    for (DaprHttp.HttpMethods verb : List.of(DaprHttp.HttpMethods.GET, DaprHttp.HttpMethods.POST, DaprHttp.HttpMethods.PUT, DaprHttp.HttpMethods.DELETE)) {
      r.step("HTTP app: " + verb, () -> {
        Object body = verb == DaprHttp.HttpMethods.GET ? null : Map.of("n", 1);
        HttpExtension how = new HttpExtension(verb, Map.of("a", List.of("1", "c d")), Map.of("x-mine", "theirs"));
        JsonNode seen = Apps.JSON.readTree(rpc.invokeMethod(webApp, "about", body, how, byte[].class).block());
        String wantBody = body == null || verb == DaprHttp.HttpMethods.DELETE ? seen.get("body").textValue() : "{\"n\":1}";
        expect("what the app saw", List.of(seen.get("verb").textValue(), seen.get("query").textValue(), seen.get("body").textValue(), seen.get("caller").textValue(), seen.get("mine").textValue(), seen.get("token").booleanValue()),
            List.of(verb.name(), "a=1&a=c+d", wantBody, rpcApp, "theirs", true));
      });
    }
    r.step("HTTP app: no content", () -> expect("the answer", web.invokeMethod(webApp, "nothing", HttpExtension.GET, Map.of(), String.class).block(), null));
    r.step("HTTP app: its status", () -> {
      DaprException e = refused(DaprException.class, () -> rpc.invokeMethod(webApp, "teapot", null, HttpExtension.GET, byte[].class).block());
      expect("the status and payload", List.of(e.getHttpStatusCode(), new String(e.getPayload())), List.of(418, "short and stout"));
    });
    r.step("gRPC app: content", () -> {
      byte[] data = new byte[1 << 20];
      new Random(1).nextBytes(data);
      expect("equality", Arrays.equals(web.invokeMethod(rpcApp, "echo", data, HttpExtension.POST, byte[].class).block(), data), true);
    });
    r.step("gRPC app: verb and query", () -> {
      HttpExtension how = new HttpExtension(DaprHttp.HttpMethods.PUT, Map.of("a", List.of("1")), Map.of());
      expect("the answer", web.invokeMethod(rpcApp, "about", "x", how, String.class).block(), "PUT a=1");
    });
    r.step("gRPC app: its error", () -> {
      DaprException e = refused(DaprException.class, () -> web.invokeMethod(rpcApp, "missing", null, HttpExtension.GET, byte[].class).block());
      expect("the status", e.getHttpStatusCode(), 404);
    });
    r.step("an unknown app", () -> {
      DaprException e = refused(DaprException.class, () -> web.invokeMethod("no-such-app", "x", null, HttpExtension.GET, byte[].class).block());
      expect("the error", List.of(e.getErrorCode(), e.getHttpStatusCode()), List.of("ERR_DIRECT_INVOKE", 500));
    });
    r.step("a gRPC service of the app, proxied", () ->
        web.newGrpcStub(rpcApp, AppCallbackHealthCheckGrpc::newBlockingStub).healthCheck(Empty.getDefaultInstance()));
  }
}
