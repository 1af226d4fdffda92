//! `/openapi.json`: what the router answers, in OpenAPI's form. The schemas of bodies are derived from the types that are parsed.

use axum::extract::State as From;
use axum::handler::Handler;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use utoipa::ToSchema;
use utoipa::openapi::content::ContentBuilder;
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
    /// The name of its body's schema, and what adds that and those below it.
    body: Option<(String, AddSchemas)>,
    answer: &'static [&'static str],
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
            answer: &[JSON],
        }
    }

    /// With a body of this type.
    pub fn of<B: ToSchema>(mut self) -> Route {
        self.body = Some((B::name().into_owned(), add::<B>));
        self
    }

    /// Answered in these types of content.
    pub fn answering(mut self, answer: &'static [&'static str]) -> Route {
        self.answer = answer;
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

    fn operation(&self, keys: bool) -> OperationBuilder {
        let mut answer = ResponseBuilder::new().description("The answer");
        for kind in self.answer {
            answer = answer.content(*kind, ContentBuilder::new().build());
        }
        let error = Ref::from_schema_name(ErrorBody::name());
        let error = ResponseBuilder::new()
            .description("A refusal: what was found, and the field it was found in")
            .content(JSON, ContentBuilder::new().schema(Some(error)).build());
        let mut operation = OperationBuilder::new()
            .summary(Some(self.says))
            .response("200", answer)
            .response("default", error);
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
        if keys && !self.open {
            operation = operation.security(SecurityRequirement::new::<_, _, &str>(SCHEME, []));
        }
        operation
    }
}

/// The description of these paths; `keys`: whether the server wants one.
pub(super) fn document(routes: &[Route], keys: bool) -> OpenApi {
    let mut paths = PathsBuilder::new();
    let mut schemas = Schemas::new();
    add::<ErrorBody>(&mut schemas);
    for route in routes {
        let operation = route.operation(keys);
        paths = paths.path(route.shown, PathItem::new(route.method.clone(), operation));
        if let Some((_, add)) = route.body {
            add(&mut schemas);
        }
    }
    let mut components = ComponentsBuilder::new().schemas_from_iter(schemas);
    if keys {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components = components.security_scheme(SCHEME, SecurityScheme::Http(bearer));
    }
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
