//! Schemas that answers must keep: `response_format`, and the parameters of tools.

use russet_engine::guide::Constraint;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// The most a schema may nest: objects and lists within one another.
pub(crate) const DEEPEST: usize = 64;
/// The largest schema, in bytes of its text.
pub(crate) const LARGEST: usize = 256 << 10;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Format {
    Text,
    JsonObject,
    JsonSchema { json_schema: Named },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    // For the reader of the request; the schema says it all.
    #[serde(rename = "description")]
    _description: Option<String>,
    schema: Option<Value>,
    // An answer keeps its schema either way.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum TextFormat {
    Text,
    JsonObject,
    JsonSchema(Named),
}

/// What `text.format` of `/v1/responses` asks for; `None`: any text.
pub(crate) fn text_format(value: &Value) -> ApiResult<Option<Constraint>> {
    let format = TextFormat::deserialize(value).map_err(|error| {
        let said = format!(
            "text.format: {error}; it is {{\"type\": \"text\"}}, {{\"type\": \"json_object\"}} or {{\"type\": \"json_schema\", \
             \"name\": …, \"schema\": …}}"
        );
        ApiError::field("text.format", said)
    })?;
    match format {
        TextFormat::Text => Ok(None),
        TextFormat::JsonObject => Ok(Some(Constraint::JsonObject)),
        TextFormat::JsonSchema(named) => named.constraint("text.format").map(Some),
    }
}

/// What `response_format` asks for; `None`: any text.
pub(crate) fn response_format(value: &Value) -> ApiResult<Option<Constraint>> {
    let format = Format::deserialize(value).map_err(|error| {
        let said = format!(
            "response_format: {error}; it is {{\"type\": \"text\"}}, {{\"type\": \"json_object\"}} or {{\"type\": \"json_schema\", \
             \"json_schema\": {{\"name\": …, \"schema\": …}}}}"
        );
        ApiError::field("response_format", said)
    })?;
    match format {
        Format::Text => Ok(None),
        Format::JsonObject => Ok(Some(Constraint::JsonObject)),
        Format::JsonSchema { json_schema } => {
            let place = "response_format.json_schema";
            json_schema.constraint(place).map(Some)
        }
    }
}

impl Named {
    /// What an answer must keep; `place` is where this stands.
    fn constraint(&self, place: &str) -> ApiResult<Constraint> {
        if self.name.is_empty() || self.name.len() > 64 {
            return Err(ApiError::field(
                format!("{place}.name"),
                "the schema's name has 1 to 64 bytes",
            ));
        }
        let field = format!("{place}.schema");
        let Some(schema) = &self.schema else {
            let said = format!(
                "`{field}` is missing, and it says what the answer must keep; for any object write {{\"type\": \"json_object\"}}"
            );
            return Err(ApiError::field(field, said));
        };
        constraint(schema).map_err(|error| error.about(&field))
    }
}

/// A schema within its bounds.
pub(crate) fn constraint(schema: &Value) -> ApiResult<Constraint> {
    Ok(Constraint::JsonSchema(checked(schema)?))
}

/// The text of a schema, if it is one within its bounds.
pub(crate) fn checked(schema: &Value) -> ApiResult<String> {
    if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
        return Err(ApiError::body("a schema is an object"));
    }
    let depth = depth(schema);
    if depth > DEEPEST {
        return Err(ApiError::body(format!(
            "the schema nests {depth} deep, but {DEEPEST} is the most; make it flatter"
        ))
        .coded("schema_too_deep"));
    }
    let text = schema.to_string();
    if text.len() > LARGEST {
        return Err(ApiError::body(format!(
            "the schema has {} bytes, but {LARGEST} are the most",
            text.len()
        ))
        .coded("schema_too_large"));
    }
    Ok(text)
}

/// Objects and lists within one another. What was parsed nests at most 128 deep.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
