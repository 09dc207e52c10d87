//! Every place of the API that takes something from a client, from the document that the API itself serves: a new
//! route is attacked without anybody having to think of it. Pure.

use serde_json::{Map, Value, json};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// One route with one method.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Path with its placeholders.
    pub path: String,
    /// Method in lower case.
    pub method: String,
    /// Its description.
    pub description: Value,
}

/// All operations of a document.
pub fn operations(document: &Value) -> Vec<Operation> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().into_iter().flatten().map(|(method, description)| Operation {
            path: path.clone(),
            method: method.clone(),
            description: description.clone(),
        })
    });
    operations.filter(|operation| METHODS.contains(&operation.method.as_str())).collect()
}

/// Where a client's text goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A part of the path.
    Path(String),
    /// A parameter of the query.
    Query(String),
    /// A header.
    Header(String),
    /// A value in the JSON body, by its JSON pointer.
    Value(String),
    /// A key of the object at this pointer in the JSON body.
    Key(String),
    /// The name of an uploaded file.
    FileName,
    /// The name of a form's field.
    FieldName,
}

impl Place {
    /// A header that says how to read the body.
    pub fn is_of_body(&self) -> bool {
        matches!(self, Self::Header(name) if name == "content-type" || name == "content-encoding")
    }
}

impl Operation {
    /// All places of this operation; headers that every request has are among them.
    pub fn places(&self, document: &Value) -> Vec<Place> {
        let parameters = self.description["parameters"].as_array().into_iter().flatten();
        let mut places: Vec<Place> = parameters
            .filter_map(|parameter| {
                let name = parameter["name"].as_str()?.to_owned();
                match parameter["in"].as_str()? {
                    "path" => Some(Place::Path(name)),
                    "query" => Some(Place::Query(name)),
                    "header" => Some(Place::Header(name)),
                    _ => None,
                }
            })
            .collect();
        places.push(Place::Query("unknown".to_owned()));
        let everywhere =
            ["user-agent", "x-request-id", "traceparent", "x-forwarded-for", "x-forwarded-host", "accept", "host"];
        places.extend(everywhere.map(|name| Place::Header(name.to_owned())));
        if let Some(body) = self.body(document) {
            leaves(&body, String::new(), &mut places);
            places.push(Place::Key(String::new()));
            places.push(Place::Header("content-type".to_owned()));
            places.push(Place::Header("content-encoding".to_owned()));
        }
        if self.is_upload() {
            places.extend([Place::FileName, Place::FieldName]);
        }
        places
    }

    /// A JSON body that has every field of the schema.
    pub fn body(&self, document: &Value) -> Option<Value> {
        let schema = &self.description["requestBody"]["content"]["application/json"]["schema"];
        schema.is_object().then(|| example(document, schema, 0))
    }

    /// It takes a file.
    pub fn is_upload(&self) -> bool {
        self.description["requestBody"]["content"]["multipart/form-data"].is_object()
    }
}

/// A value of the schema, with the document's own examples.
fn example(document: &Value, schema: &Value, depth: usize) -> Value {
    if depth > 8 {
        return Value::Null;
    }
    if let Some(pointer) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        return document.pointer(pointer).map_or(Value::Null, |schema| example(document, schema, depth + 1));
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(schemas) = schema[several].as_array() {
            let first = schemas.iter().find(|schema| schema["type"] != "null").unwrap_or(&Value::Null);
            return example(document, first, depth + 1);
        }
    }
    if !schema["example"].is_null() {
        return schema["example"].clone();
    }
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    let kind = kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("object");
    match kind {
        "string" => json!("x"),
        "integer" | "number" => schema["minimum"].as_i64().unwrap_or(1).into(),
        "boolean" => json!(true),
        "array" => json!([example(document, &schema["items"], depth + 1)]),
        _ => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            let mut object: Map<String, Value> =
                properties.map(|(name, schema)| (name.clone(), example(document, schema, depth + 1))).collect();
            if schema["additionalProperties"].is_object() {
                object.insert("KEY".to_owned(), example(document, &schema["additionalProperties"], depth + 1));
            }
            Value::Object(object)
        }
    }
}

fn leaves(value: &Value, pointer: String, places: &mut Vec<Place>) {
    match value {
        Value::Object(fields) => {
            if !pointer.is_empty() {
                places.push(Place::Key(pointer.clone()));
            }
            for (name, value) in fields {
                leaves(value, format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), places);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                leaves(value, format!("{pointer}/{index}"), places);
            }
        }
        _ => {}
    }
    // The whole of an object or list may be a text too.
    if !pointer.is_empty() {
        places.push(Place::Value(pointer));
    }
}

/// The body with the text in its place.
pub fn with(body: &Value, place: &Place, text: &str) -> Value {
    let mut body = body.clone();
    match place {
        Place::Value(pointer) => {
            if let Some(value) = body.pointer_mut(pointer) {
                *value = json!(text);
            }
        }
        Place::Key(pointer) => {
            if let Some(fields) = body.pointer_mut(pointer).and_then(Value::as_object_mut) {
                fields.insert(text.to_owned(), json!("x"));
            }
        }
        _ => {}
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_an_operation_is_found() {
        let document = json!({
            "paths": {"/v1/x/{id}": {"summary": "no method", "post": {
                "parameters": [{"name": "id", "in": "path"}, {"name": "q", "in": "query"}, {"name": "H", "in": "header"}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/X"}}}},
            }}},
            "components": {"schemas": {"X": {"type": "object", "properties": {
                "name": {"type": ["string", "null"]},
                "deep": {"oneOf": [{"type": "null"}, {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}]},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
            }}}},
        });
        let operations = operations(&document);
        assert_eq!(operations.len(), 1);
        let body = operations[0].body(&document).unwrap_or_default();
        assert_eq!(body, json!({"name": "x", "deep": ["a"], "map": {"KEY": "x"}}));
        let places = operations[0].places(&document);
        for wanted in [
            Place::Path("id".into()),
            Place::Query("q".into()),
            Place::Header("H".into()),
            Place::Value("/name".into()),
            Place::Value("/deep".into()),
            Place::Value("/deep/0".into()),
            Place::Value("/map/KEY".into()),
            Place::Key("/map".into()),
        ] {
            assert!(places.contains(&wanted), "{wanted:?} in {places:?}");
        }
        assert_eq!(with(&body, &Place::Value("/deep/0".into()), "!")["deep"], json!(["!"]));
        assert_eq!(with(&body, &Place::Key("/map".into()), "!")["map"]["!"], "x");
    }
}
