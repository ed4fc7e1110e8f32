# The image of operator, guard and command line. The test cluster builds the same image without Docker.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends protobuf-compiler libprotobuf-dev
WORKDIR /source
COPY . .
RUN cargo build --locked --release --package quorate --package quorate-guard \
 && mkdir /out && cp target/*/release/quorate target/*/release/quorate-guard /out/

FROM scratch
COPY --from=build /out/ /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/quorate"]
