package sdk;

import java.util.Map;
import java.util.Objects;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Prints one line per step. */
final class Report {
  static final int STEP_LIMIT_SECONDS = 15;

  int passed;
  int failed;
  String prefix = "";

  private final ExecutorService steps = Executors.newCachedThreadPool(r -> {
    Thread t = new Thread(r, "step");
    t.setDaemon(true);
    return t;
  });

  /** A step; it fails by throwing. */
  interface Step {
    void run() throws Exception;
  }

  void step(String name, Step step) {
    long start = System.nanoTime();
    Future<?> done = steps.submit(() -> {
      step.run();
      return null;
    });
    String error;
    try {
      done.get(STEP_LIMIT_SECONDS, TimeUnit.SECONDS);
      passed++;
      System.out.printf("PASS %s%s (%d ms)%n", prefix, name, (System.nanoTime() - start) / 1_000_000);
      return;
    } catch (ExecutionException e) {
      error = String.valueOf(e.getCause());
    } catch (TimeoutException e) {
      error = "not done after " + STEP_LIMIT_SECONDS + " s";
    } catch (InterruptedException e) {
      error = "interrupted";
    }
    failed++;
    System.out.printf("FAIL %s%s: %s%n", prefix, name, error.replace('\n', ' '));
  }

  void under(String name, Runnable run) {
    String old = prefix;
    prefix += name + ": ";
    run.run();
    prefix = old;
  }

  static void expect(String what, Object got, Object want) {
    if (!Objects.equals(got, want)) {
      throw new AssertionError(what + " is <" + got + ">, want <" + want + ">");
    }
  }

  /** Fails unless call throws a kind of error. */
  static <E extends Throwable> E refused(Class<E> kind, Callable<?> call) throws Exception {
    Object result;
    try {
      result = call.call();
    } catch (Throwable t) {
      if (kind.isInstance(t)) {
        return kind.cast(t);
      }
      throw t;
    }
    throw new AssertionError("got <" + result + ">, want " + kind.getSimpleName());
  }

  /** Keeps what the apps received, by name. */
  static final class Inbox<T> {
    private final Map<String, BlockingQueue<T>> queues = new ConcurrentHashMap<>();

    private BlockingQueue<T> queue(String name) {
      return queues.computeIfAbsent(name, n -> new LinkedBlockingQueue<>());
    }

    void put(String name, T event) {
      queue(name).add(event);
    }

    int size(String name) {
      return queue(name).size();
    }

    T take(String name) throws InterruptedException {
      T event = queue(name).poll(STEP_LIMIT_SECONDS, TimeUnit.SECONDS);
      if (event == null) {
        throw new AssertionError("no event arrived at " + name);
      }
      return event;
    }
  }
}
