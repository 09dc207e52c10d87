//! Pages of `tools/list`: read tool by tool, so that no more than one of them is a tree at a time, and up to sizes that
//! a page has. What is no tool, or longer than one, is left out: nobody sees it, and nobody can call it. Pure.

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::policy::{ToolDigest, digest};

/// Longest name of a tool or a prompt.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest definition of a tool.
const MAX_TOOL_BYTES: usize = 128 * 1024;
/// Tools of a page, and of a server.
pub const MAX_TOOLS: usize = 2000;
/// Fields of a page besides the tools.
const MAX_FIELDS: usize = 16;

/// A tool as the server has it.
#[derive(Debug, Clone)]
pub struct Tool {
    /// Its name and its digest.
    pub digest: ToolDigest,
    /// Its definition.
    pub definition: Box<RawValue>,
}

impl Tool {
    fn read(definition: Box<RawValue>) -> Option<Self> {
        let value: Value = serde_json::from_str(definition.get()).ok()?;
        let name = value.get("name")?.as_str()?;
        is_name(name).then(|| Self { digest: ToolDigest { name: name.to_owned(), digest: digest(&value) }, definition })
    }

    /// The whole of it.
    pub fn value(&self) -> Value {
        serde_json::from_str(self.definition.get()).unwrap_or_default()
    }
}

/// Whether it can be the name of a tool: it goes into Postgres, logs and headers.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.chars().any(char::is_control)
}

/// One page.
#[derive(Debug, Clone, Default)]
pub struct ToolPage {
    /// Its tools.
    pub tools: Vec<Tool>,
    /// Whatever else it says.
    rest: Vec<(String, Box<RawValue>)>,
    has_tools: bool,
}

impl ToolPage {
    /// Reads the result of a `tools/list`; one that is something else has no tools.
    pub fn read(result: &RawValue) -> Self {
        Self::parse(result).unwrap_or_default()
    }

    /// The same of a result of whatever was asked; none: if it has tools, they cannot be told.
    pub fn parse(result: &RawValue) -> Option<Self> {
        serde_json::from_str(result.get()).ok()
    }

    /// Whether it lists tools, if only none.
    pub fn has_tools(&self) -> bool {
        self.has_tools
    }

    /// Where the next page begins.
    pub fn next(&self) -> Option<String> {
        let (_, cursor) = self.rest.iter().find(|(name, _)| name == "nextCursor")?;
        serde_json::from_str(cursor.get()).ok()
    }

    /// Names and digests.
    pub fn digests(&self) -> Vec<ToolDigest> {
        self.tools.iter().map(|tool| tool.digest.clone()).collect()
    }

    /// As a result again.
    pub fn to_raw(&self) -> Option<Box<RawValue>> {
        let mut fields: Vec<String> =
            self.rest.iter().map(|(name, value)| format!("{}:{value}", Value::from(name.as_str()))).collect();
        if self.has_tools {
            let tools: Vec<&str> = self.tools.iter().map(|tool| tool.definition.get()).collect();
            fields.push(format!("\"tools\":[{}]", tools.join(",")));
        }
        RawValue::from_string(format!("{{{}}}", fields.join(","))).ok()
    }
}

impl<'de> Deserialize<'de> for ToolPage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PageVisitor)
    }
}

struct PageVisitor;

impl<'de> Visitor<'de> for PageVisitor {
    type Value = ToolPage;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a result of tools/list")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<ToolPage, M::Error> {
        let mut page = ToolPage::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "tools" {
                page.tools = map.next_value::<Tools>()?.0;
                page.has_tools = true;
            } else if page.rest.len() < MAX_FIELDS && name.len() <= MAX_NAME_BYTES {
                page.rest.push((name, map.next_value()?));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(page)
    }
}

struct Tools(Vec<Tool>);

impl<'de> Deserialize<'de> for Tools {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ToolsVisitor)
    }
}

struct ToolsVisitor;

impl<'de> Visitor<'de> for ToolsVisitor {
    type Value = Tools;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of tools")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Tools, S::Error> {
        let mut tools = Vec::new();
        while tools.len() < MAX_TOOLS
            && let Some(definition) = items.next_element::<Box<RawValue>>()?
        {
            tools.extend(Some(definition).filter(|it| it.get().len() <= MAX_TOOL_BYTES).and_then(Tool::read));
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Tools(tools))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn page(value: &Value) -> ToolPage {
        ToolPage::read(&RawValue::from_string(value.to_string()).unwrap())
    }

    fn names(page: &ToolPage) -> Vec<&str> {
        page.tools.iter().map(|tool| tool.digest.name.as_str()).collect()
    }

    #[test]
    fn what_is_no_tool_is_left_out_and_the_rest_stays_as_it_is() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let read = page(&json!({"tools": [
            {"name": "a", "inputSchema": {}}, {"noname": 1}, 7, {"name": ""}, {"name": "nul\0"}, {"name": "esc\u{1b}[2J"},
            {"name": long}, {"name": "huge", "description": "x".repeat(MAX_TOOL_BYTES)}, {"name": "b"},
        ], "nextCursor": "2", "ttlMs": 5}));
        assert_eq!(names(&read), ["a", "b"]);
        assert_eq!(read.next().as_deref(), Some("2"));
        let again: Value = serde_json::from_str(read.to_raw().unwrap().get()).unwrap();
        assert_eq!(
            again,
            json!({"tools": [{"name": "a", "inputSchema": {}}, {"name": "b"}], "nextCursor": "2", "ttlMs": 5})
        );
    }

    #[test]
    fn a_page_has_no_more_than_a_server_may_have() {
        let many: Vec<Value> = (0..MAX_TOOLS + 5).map(|number| json!({"name": format!("t{number}")})).collect();
        assert_eq!(page(&json!({ "tools": many })).tools.len(), MAX_TOOLS);
        let fields: serde_json::Map<_, _> = (0..100).map(|number| (format!("f{number}"), json!(1))).collect();
        assert_eq!(page(&Value::Object(fields)).rest.len(), MAX_FIELDS);
        for other in [json!([]), json!(null), json!({"tools": 7}), json!("x")] {
            assert!(page(&other).tools.is_empty(), "{other}");
        }
        assert_eq!(page(&json!({"x": 1})).to_raw().unwrap().get(), r#"{"x":1}"#);
    }
}
