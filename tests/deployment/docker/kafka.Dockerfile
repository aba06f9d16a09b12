# In the place of apache/kafka: the same jars, the same start, Debian's Java.
ARG BASE
FROM ${BASE}
RUN apt-get update -q && apt-get install -q -y --no-install-recommends openjdk-17-jre-headless && rm -rf /var/lib/apt/lists
RUN useradd --system --uid 1000 --create-home appuser \
    && install -d -o appuser /etc/kafka/docker /mnt/shared/config /opt/kafka/config /var/lib/kafka/data \
    && touch /etc/kafka/docker/server.properties /etc/kafka/docker/log4j2.yaml /etc/kafka/docker/tools-log4j2.yaml
COPY jars /opt/kafka/libs
COPY kafka.sh /etc/kafka/docker/run
USER appuser
CMD ["bash", "/etc/kafka/docker/run"]
