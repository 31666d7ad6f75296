import java.util.Properties;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;

/** Appends a record for each key with Kafka's own client and prints "key partition". */
class Produce {
    public static void main(String[] args) throws Exception {
        var p = new Properties();
        p.put("bootstrap.servers", args[0]);
        p.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        p.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        try (var producer = new KafkaProducer<String, String>(p)) {
            for (int i = 2; i < args.length; i++) {
                System.out.println(args[i] + " " + producer.send(new ProducerRecord<>(args[1], args[i], "")).get().partition());
            }
        }
    }
}
