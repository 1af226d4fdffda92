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

/// What `response_format` asks for; `None`: any text.
pub(crate) fn response_format(value: &Value) -> ApiResult<Option<Constraint>> {
    let format = Format::deserialize(value).map_err(|error| {
        let said = format!(
            "response_format: {error}; it is {{\"type\": \"text\"}}, {{\"type\": \"json_object\"}} or {{\"type\": \"json_schema\", \
             \"json_schema\": {{\"name\": …, \"schema\": …}}}}"
        );
        ApiError::field("response_format", said)
    })?;
    Ok(match format {
        Format::Text => None,
        Format::JsonObject => Some(Constraint::JsonObject),
        Format::JsonSchema { json_schema } => {
            if json_schema.name.is_empty() || json_schema.name.len() > 64 {
                return Err(ApiError::field(
                    "response_format.json_schema.name",
                    "the schema's name has 1 to 64 bytes",
                ));
            }
            match &json_schema.schema {
                None => Some(Constraint::JsonObject),
                Some(schema) => Some(
                    constraint(schema)
                        .map_err(|error| error.about("response_format.json_schema.schema"))?,
                ),
            }
        }
    })
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
