//! What is pushed to stores, decoded by others' messages: those that their makers publish, or that Python makes of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use profiler::daemon::push::{PushConfig, Pusher, StoreKind};
use profiler::output::export::stores;
use profiler_tests::{Target, missing, scratch, tools, wait_until};

use crate::{example, program, run};

/// Where Python finds the messages; `None` where they are not installed.
fn messages() -> Option<PathBuf> {
    let modules = tools("pypi");
    if !modules.join("grpc").is_dir() {
        missing("grpcio and opentelemetry-proto are not installed");
        return None;
    }
    Some(modules)
}

/// Parca's service, as its maker describes it, made of descriptors and served by gRPC; prints what it gets.
const PARCA: &str = r#"
import sys, gzip, concurrent.futures, grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
file = descriptor_pb2.FileDescriptorProto(name="parca.proto", package="parca.profilestore.v1alpha1", syntax="proto3")
T = descriptor_pb2.FieldDescriptorProto
def message(name, *fields):
    made = file.message_type.add(name=name)
    for number, field, kind, repeated in fields:
        one = made.field.add(name=field, number=number, label=T.LABEL_REPEATED if repeated else T.LABEL_OPTIONAL)
        if isinstance(kind, str):
            one.type, one.type_name = T.TYPE_MESSAGE, ".parca.profilestore.v1alpha1." + kind
        else:
            one.type = kind
message("Label", (1, "name", T.TYPE_STRING, False), (2, "value", T.TYPE_STRING, False))
message("LabelSet", (1, "labels", "Label", True))
message("RawSample", (1, "raw_profile", T.TYPE_BYTES, False))
message("RawProfileSeries", (1, "labels", "LabelSet", False), (2, "samples", "RawSample", True))
message("WriteRawRequest", (1, "tenant", T.TYPE_STRING, False), (2, "series", "RawProfileSeries", True), (3, "normalized", T.TYPE_BOOL, False))
message("WriteRawResponse")
pool = descriptor_pool.DescriptorPool()
pool.Add(file)
of = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName("parca.profilestore.v1alpha1." + name))
Request, Response = of("WriteRawRequest"), of("WriteRawResponse")
seen = []
def write(request, context):
    seen.append(request)
    if len(seen) == 1:
        context.abort(grpc.StatusCode.UNAVAILABLE, "later")
    for series in request.series:
        labels = {label.name: label.value for label in series.labels.labels}
        print("got", labels["__name__"], labels["service_name"], len(gzip.decompress(series.samples[0].raw_profile)), flush=True)
    print("end", flush=True)
    return Response()
handler = grpc.method_handlers_generic_handler("parca.profilestore.v1alpha1.ProfileStoreService",
    {"WriteRaw": grpc.unary_unary_rpc_method_handler(write, request_deserializer=Request.FromString, response_serializer=Response.SerializeToString)})
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
server.add_generic_rpc_handlers((handler,))
assert server.add_insecure_port(sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
"#;

#[test]
fn parca_is_called_by_grpc_and_again_when_it_is_not_available() {
    let (Some(python), Some(messages)) = (program("python3"), messages()) else { return };
    let directory = scratch();
    // Nobody else takes it in between, most likely.
    let address = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number");
    let said = directory.path().join("said");
    let mut command = Command::new(python);
    command.args(["-c", PARCA, &address.to_string()]).env("PYTHONPATH", messages);
    command.stderr(fs::File::create(&said).expect("a file"));
    let mut server = Target::start_command(&mut command);
    let config = PushConfig {
        kind: StoreKind::Parca,
        address: format!("http://{address}"),
        labels: BTreeMap::from([("service_name".to_owned(), "node".to_owned())]),
        authorization_file: PathBuf::new(),
        ca: PathBuf::new(),
        queue_mib: 1,
    };
    let pusher = Pusher::new(directory.path(), &[config]).expect("a pusher");
    pusher.put(&example::capture_with_waits());
    let sending = pusher.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(sending.run());
    });
    let state = wait_until("the call", || {
        let state = pusher.states().next().expect("a store").1;
        (state.waiting == 0).then_some(state)
    });
    assert_eq!((state.sent, state.retried, state.refused), (1, 1, 0), "{state:?}");
    let got = server.lines_until("end");
    let names: Vec<&str> = got.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(names, ["process_cpu", "offcpu"], "{got:?}");
    assert!(got.iter().all(|line| line.split(' ').nth(2) == Some("node")), "{got:?}");
}

#[test]
fn a_collector_reads_what_is_pushed_by_otlp() {
    let (Some(python), Some(messages)) = (program("python3"), messages()) else { return };
    let directory = scratch();
    let capture = example::capture_with_waits();
    for (number, request) in stores::otlp(&capture).iter().enumerate() {
        let path = directory.path().join(number.to_string());
        fs::write(&path, request).expect("write the request");
        let script = "import sys\n\
            from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceRequest as Request\n\
            request = Request.FromString(open(sys.argv[1], 'rb').read())\n\
            profiles = request.resource_profiles[0].scope_profiles[0].profiles\n\
            print(sum(sum(sample.values) for sample in profiles[0].samples))\n";
        let text = run(Command::new(&python).args(["-c", script]).arg(&path).env("PYTHONPATH", &messages));
        assert_eq!(text.trim(), capture.profiles[number].totals()[0].to_string());
    }
}
