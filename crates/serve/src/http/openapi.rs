//! `/openapi.json`: what the router answers, in OpenAPI's form. The schemas of bodies are derived from the types that are parsed; those
//! of answers stand in `answers`.

pub(super) mod answers;

use axum::extract::State as From;
use axum::handler::Handler;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use utoipa::ToSchema;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Info, OpenApi, OpenApiBuilder, Ref, RefOr, Required, ResponseBuilder};

use super::Shared;
use crate::error::ErrorBody;

type Schemas = Vec<(String, RefOr<Schema>)>;
type AddSchemas = fn(&mut Schemas);

const SCHEME: &str = "key";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// A schema by its name, and what adds it and those below it.
type Named = (String, AddSchemas);

fn named<B: ToSchema>() -> Named {
    (B::name().into_owned(), add::<B>)
}

/// What the whole server does, as far as it shows in every operation.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Whether it wants a key.
    pub keys: bool,
    /// Whether it answers to this machine's names alone.
    pub local: bool,
}

/// Adds the schema of a type, and those below it.
fn add<B: ToSchema>(schemas: &mut Schemas) {
    schemas.push((B::name().into_owned(), B::schema()));
    B::schemas(schemas);
}

/// A path of the server: how it is answered, and what the description says of it. Router, description and metrics are made of the
/// same ones.
pub(super) struct Route {
    /// As the router takes it.
    pub path: &'static str,
    /// As the description and metrics write it.
    pub shown: &'static str,
    pub handler: MethodRouter<Shared>,
    /// Whether it is answered without a key.
    pub open: bool,
    method: HttpMethod,
    says: &'static str,
    body: Option<Named>,
    /// By type of content; `None`: a text of no further form.
    answers: Vec<(&'static str, Option<Named>)>,
    /// Whether it waits in the engine's queue.
    queued: bool,
    /// Whether a key may lack the right to it.
    guarded: bool,
}

impl Route {
    pub fn get<H: Handler<T, Shared>, T: 'static>(
        path: &'static str,
        handler: H,
        says: &'static str,
    ) -> Route {
        Route::new(path, HttpMethod::Get, get(handler), says)
    }

    pub fn post<H: Handler<T, Shared>, T: 'static>(
        path: &'static str,
        handler: H,
        says: &'static str,
    ) -> Route {
        Route::new(path, HttpMethod::Post, post(handler), says)
    }

    fn new(
        path: &'static str,
        method: HttpMethod,
        handler: MethodRouter<Shared>,
        says: &'static str,
    ) -> Route {
        Route {
            path,
            shown: path,
            handler,
            open: false,
            method,
            says,
            body: None,
            answers: Vec::new(),
            queued: false,
            guarded: false,
        }
    }

    /// With a body of this type.
    pub fn of<B: ToSchema>(mut self) -> Route {
        self.body = Some(named::<B>());
        self
    }

    /// Answered by JSON of this type.
    pub fn gives<A: ToSchema>(mut self) -> Route {
        self.answers.push((JSON, Some(named::<A>())));
        self
    }

    /// Answered, where that is asked for, by events of this type.
    pub fn streams<A: ToSchema>(mut self) -> Route {
        self.answers.push((EVENTS, Some(named::<A>())));
        self
    }

    /// Answered by a text of this type of content.
    pub fn says(mut self, kind: &'static str) -> Route {
        self.answers.push((kind, None));
        self
    }

    /// Waits in the engine's queue, which may be full.
    pub fn queued(mut self) -> Route {
        self.queued = true;
        self
    }

    /// May be closed, to all or to a key.
    pub fn guarded(mut self) -> Route {
        self.guarded = true;
        self
    }

    /// Answered without a key.
    pub fn open(mut self) -> Route {
        self.open = true;
        self
    }

    /// Written so where it is told of.
    pub fn shown(mut self, shown: &'static str) -> Route {
        self.shown = shown;
        self
    }

    fn operation(&self, manner: Manner) -> OperationBuilder {
        let mut answer = ResponseBuilder::new().description("The answer");
        for (kind, form) in &self.answers {
            let schema: RefOr<Schema> = match form {
                Some((name, _)) => Ref::from_schema_name(name).into(),
                None => ObjectBuilder::new().schema_type(Type::String).into(),
            };
            let content = ContentBuilder::new().schema(Some(schema));
            answer = answer.content(*kind, content.build());
        }
        let mut operation = OperationBuilder::new()
            .summary(Some(self.says))
            .response("200", answer)
            .response(
                "default",
                refusal("A refusal: what was found, and the field it was found in"),
            );
        if manner.keys && !self.open {
            let said = "No key, or one that is not known";
            operation = operation.response("401", refusal(said));
        }
        if self.guarded || manner.local {
            let said = match (self.guarded, manner.local) {
                (true, true) => "The key may not, nobody may, or the name is not this machine's",
                (true, false) => "The key may not, or nobody may",
                (false, _) => "A name in `Host` that is not this machine's",
            };
            operation = operation.response("403", refusal(said));
        }
        if self.queued || (manner.keys && self.method == HttpMethod::Post) {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer);
            let when = HeaderBuilder::new()
                .schema(Some(seconds))
                .description(Some("Seconds until it makes sense to ask again"));
            let said = "The queue is full, or the key has had what it may";
            let refusal = refusal(said).header("Retry-After", when.build());
            operation = operation.response("429", refusal);
        }
        if let Some((name, _)) = &self.body {
            let schema = Ref::from_schema_name(name);
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let body = RequestBodyBuilder::new()
                .required(Some(Required::True))
                .content(JSON, content);
            operation = operation.request_body(Some(body.build()));
        }
        if self.path.contains('{') {
            let text = ObjectBuilder::new().schema_type(Type::String);
            let name = ParameterBuilder::new()
                .name("name")
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(text));
            operation = operation.parameter(name);
        }
        if manner.keys && !self.open {
            operation = operation.security(SecurityRequirement::new::<_, _, &str>(SCHEME, []));
        }
        operation
    }
}

/// A refusal, and when there is one.
fn refusal(said: &str) -> ResponseBuilder {
    let error = Ref::from_schema_name(ErrorBody::name());
    let content = ContentBuilder::new().schema(Some(error)).build();
    ResponseBuilder::new()
        .description(said)
        .content(JSON, content)
}

/// The description of these paths.
pub(super) fn document(routes: &[Route], manner: Manner) -> OpenApi {
    let mut paths = PathsBuilder::new();
    let mut schemas = Schemas::new();
    add::<ErrorBody>(&mut schemas);
    for route in routes {
        let operation = route.operation(manner);
        paths = paths.path(route.shown, PathItem::new(route.method.clone(), operation));
        let answers = route.answers.iter().filter_map(|(_, form)| form.as_ref());
        for (_, add) in route.body.iter().chain(answers) {
            add(&mut schemas);
        }
    }
    // Described without keys too, so that who writes a client here has one for a server that wants them.
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("Wanted by a server that was started with --api-keys"));
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme(SCHEME, SecurityScheme::Http(bearer.build()));
    OpenApiBuilder::new()
        .info(Info::new("Russet", env!("CARGO_PKG_VERSION")))
        .paths(paths)
        .components(Some(components.build()))
        .build()
}

/// The description, as it was made at the start.
pub(super) async fn openapi(From(state): From<Shared>) -> Response {
    let kind = HeaderValue::from_static(JSON);
    let text = state.description.clone();
    (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
}
