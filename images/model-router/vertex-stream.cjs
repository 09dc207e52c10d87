// claude-code-router 2.0.0 asks Vertex AI for a stream without `alt=sse` and then can't read the JSON array that comes.
// Loaded before it with `node --require`; everything else it asks for goes out as it is.
const send = globalThis.fetch;

globalThis.fetch = (resource, options) => {
  if (typeof resource === "string" || resource instanceof URL) {
    const url = new URL(resource);
    if (url.pathname.endsWith(":streamGenerateContent") && !url.searchParams.has("alt")) {
      url.searchParams.set("alt", "sse");
      return send(url, options);
    }
  }
  return send(resource, options);
};
