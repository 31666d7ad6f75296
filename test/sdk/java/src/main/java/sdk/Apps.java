package sdk;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.Empty;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.dapr.v1.AppCallbackGrpc;
import io.dapr.v1.AppCallbackHealthCheckGrpc;
import io.dapr.v1.CommonProtos;
import io.dapr.v1.DaprAppCallbackProtos;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerInterceptors;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;

/**
 * The two apps. The SDK's server half is Spring Boot; without it an app is an HTTP server of any kind,
 * or the SDK's gRPC stubs on any gRPC server.
 */
final class Apps {
  static final ObjectMapper JSON = new ObjectMapper();
  static final List<String> PUBSUBS = List.of("mem-pubsub", "emb-pubsub");

  /** An event as an app got it. */
  record Event(String topic, String source, String type, String contentType, String data) {}

  final Report.Inbox<Event> inbox = new Report.Inbox<>();

  void serveWeb(int port) throws IOException {
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
    server.setExecutor(Executors.newCachedThreadPool());
    server.createContext("/", e -> answer(e, 404, "no such path"));
    server.createContext("/dapr/subscribe", e -> answer(e, 200, JSON.writeValueAsString(List.of(
        Map.of("pubsubname", "emb-pubsub", "topic", "shared", "route", "/event/shared"),
        Map.of("pubsubname", "mem-pubsub", "topic", "web-plain", "route", "/event/plain")))));
    server.createContext("/event/", e -> {
      JsonNode event = JSON.readTree(e.getRequestBody());
      String data = event.get("data").isTextual() ? event.get("data").textValue() : event.get("data").toString();
      inbox.put("web/" + event.get("pubsubname").textValue() + e.getRequestURI().getPath().replace("/event", ""),
          new Event(event.get("topic").textValue(), event.get("source").textValue(), event.get("type").textValue(), event.get("datacontenttype").textValue(), data));
      answer(e, 200, "");
    });
    server.createContext("/about", e -> {
      Map<String, Object> about = new LinkedHashMap<>();
      about.put("verb", e.getRequestMethod());
      about.put("query", e.getRequestURI().getRawQuery());
      about.put("body", new String(e.getRequestBody().readAllBytes(), StandardCharsets.UTF_8));
      about.put("caller", e.getRequestHeaders().getFirst("dapr-caller-app-id"));
      about.put("mine", e.getRequestHeaders().getFirst("x-mine"));
      about.put("token", System.getenv("APP_API_TOKEN").equals(e.getRequestHeaders().getFirst("dapr-api-token")));
      answer(e, 200, JSON.writeValueAsString(about));
    });
    server.createContext("/tick", e -> {
      // The sidecar asks with OPTIONS whether the app wants the binding.
      if (e.getRequestMethod().equals("POST")) {
        String body = new String(e.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
        inbox.put("web/tick", new Event("tick", e.getRequestHeaders().getFirst("readTimeUTC"), "", "", body));
      }
      answer(e, 200, "");
    });
    server.createContext("/teapot", e -> answer(e, 418, "short and stout"));
    server.createContext("/nothing", e -> answer(e, 204, ""));
    server.start();
  }

  private static void answer(HttpExchange e, int status, String body) throws IOException {
    e.getRequestBody().readAllBytes();
    byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
    e.getResponseHeaders().set("Content-Type", "application/json");
    e.sendResponseHeaders(status, bytes.length == 0 ? -1 : bytes.length);
    e.getResponseBody().write(bytes);
    e.close();
  }

  Server serveRpc(int port) throws IOException {
    return NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port))
        .addService(ServerInterceptors.intercept(new Callback(), new TokenCheck())) // health probes carry no token
        .addService(new AppCallbackHealthCheckGrpc.AppCallbackHealthCheckImplBase() {
          @Override
          public void healthCheck(Empty in, StreamObserver<DaprAppCallbackProtos.HealthCheckResponse> out) {
            reply(out, DaprAppCallbackProtos.HealthCheckResponse.getDefaultInstance());
          }
        })
        .build().start();
  }

  /** Refuses callers that are not the sidecar. */
  private static final class TokenCheck implements ServerInterceptor {
    private static final Metadata.Key<String> TOKEN = Metadata.Key.of("dapr-api-token", Metadata.ASCII_STRING_MARSHALLER);

    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      if (!System.getenv("APP_API_TOKEN").equals(headers.get(TOKEN))) {
        call.close(Status.UNAUTHENTICATED.withDescription("the app's token is missing"), new Metadata());
        return new ServerCall.Listener<>() {};
      }
      return next.startCall(call, headers);
    }
  }

  private static <T> void reply(StreamObserver<T> out, T message) {
    out.onNext(message);
    out.onCompleted();
  }

  private final class Callback extends AppCallbackGrpc.AppCallbackImplBase {
    private final Set<String> seen = ConcurrentHashMap.newKeySet();

    @Override
    public void onInvoke(CommonProtos.InvokeRequest in, StreamObserver<CommonProtos.InvokeResponse> out) {
      switch (in.getMethod()) {
        case "echo" -> reply(out, CommonProtos.InvokeResponse.newBuilder().setContentType(in.getContentType()).setData(in.getData()).build());
        case "about" -> reply(out, CommonProtos.InvokeResponse.newBuilder().setContentType("application/json")
            .setData(Any.newBuilder().setValue(ByteString.copyFromUtf8(
                "\"" + in.getHttpExtension().getVerb() + " " + in.getHttpExtension().getQuerystring() + "\""))).build());
        default -> out.onError(Status.NOT_FOUND.withDescription("no method " + in.getMethod()).asRuntimeException());
      }
    }

    @Override
    public void listInputBindings(Empty in, StreamObserver<DaprAppCallbackProtos.ListInputBindingsResponse> out) {
      reply(out, DaprAppCallbackProtos.ListInputBindingsResponse.newBuilder().addBindings("tick").build());
    }

    @Override
    public void onBindingEvent(DaprAppCallbackProtos.BindingEventRequest in, StreamObserver<DaprAppCallbackProtos.BindingEventResponse> out) {
      inbox.put("rpc/" + in.getName(), new Event(in.getName(), in.getMetadataMap().get("readTimeUTC"), "", "", in.getData().toStringUtf8()));
      reply(out, DaprAppCallbackProtos.BindingEventResponse.getDefaultInstance());
    }

    @Override
    public void listTopicSubscriptions(Empty in, StreamObserver<DaprAppCallbackProtos.ListTopicSubscriptionsResponse> out) {
      var all = DaprAppCallbackProtos.ListTopicSubscriptionsResponse.newBuilder();
      for (String pubsub : PUBSUBS) {
        for (String topic : List.of("shared", "rpc-plain", "rpc-bulk", "rpc-retried", "rpc-dead")) {
          all.addSubscriptions(Subscriptions.of(pubsub, topic));
        }
        all.addSubscriptions(Subscriptions.of(pubsub, "rpc-dropped").setDeadLetterTopic("rpc-dead"));
        all.addSubscriptions(Subscriptions.of(pubsub, "rpc-routed").setRoutes(DaprAppCallbackProtos.TopicRoutes.newBuilder()
            .addRules(DaprAppCallbackProtos.TopicRule.newBuilder().setMatch("event.type == \"special\"").setPath("special")).setDefault("common")));
      }
      reply(out, all.build());
    }

    @Override
    public void onTopicEvent(DaprAppCallbackProtos.TopicEventRequest in, StreamObserver<DaprAppCallbackProtos.TopicEventResponse> out) {
      var status = DaprAppCallbackProtos.TopicEventResponse.TopicEventResponseStatus.SUCCESS;
      String name = in.getTopic().replace("rpc-", "");
      switch (name) {
        case "dropped" -> status = DaprAppCallbackProtos.TopicEventResponse.TopicEventResponseStatus.DROP;
        case "retried" -> {
          if (seen.add(in.getId())) {
            status = DaprAppCallbackProtos.TopicEventResponse.TopicEventResponseStatus.RETRY;
          }
        }
        case "routed", "declared" -> name = in.getPath();
        default -> { }
      }
      if (status == DaprAppCallbackProtos.TopicEventResponse.TopicEventResponseStatus.SUCCESS) {
        inbox.put("rpc/" + in.getPubsubName() + "/" + name, new Event(in.getTopic(), in.getSource(), in.getType(), in.getDataContentType(), in.getData().toStringUtf8()));
      }
      reply(out, DaprAppCallbackProtos.TopicEventResponse.newBuilder().setStatus(status).build());
    }
  }

  /** Makes subscriptions of the gRPC app. */
  private static final class Subscriptions {
    static DaprAppCallbackProtos.TopicSubscription.Builder of(String pubsub, String topic) {
      return DaprAppCallbackProtos.TopicSubscription.newBuilder().setPubsubName(pubsub).setTopic(topic);
    }
  }
}
