/** Talking to the server: its models, and answers as a stream of server-sent events. */

/** What went wrong with a request. `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const LOST = "The connection was lost before the answer was complete.";

/**
 * The server's first model.
 * @param {string} key the API key, or ""
 * @returns {Promise<{id: string, format: "harmony" | "plain" | null, context_length: number}>}
 */
export async function fetchModel(key) {
  const response = await request("v1/models", { headers: headers(key) });
  return (await response.json()).data[0];
}

/**
 * The chunks of a streamed chat completion, as they come. Leaving the loop early, or aborting,
 * closes the connection, by which the server knows to stop.
 * @param {object} body of the request
 * @param {string} key the API key, or ""
 * @param {AbortSignal} signal
 * @throws {ApiError} also in the middle, for errors that the stream reports, or a lost connection
 */
export async function* streamChat(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of eventData(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, response.status);
    yield chunk;
  }
  throw new ApiError(LOST);
}

/**
 * The data of each server-sent event. Pieces of the stream may end anywhere: within a line, within
 * a line's end, within a character.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {AbortSignal} [signal] whose abortion is passed on as it is
 */
export async function* eventData(stream, signal) {
  const reader = stream.getReader();
  const decoder = new TextDecoder(); // keeps the first bytes of a character until the rest comes
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // "\r" at the end may be the first half of "\r\n".
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return;
    }
  } catch (error) {
    throw signal?.aborted || error instanceof ApiError ? error : new ApiError(LOST);
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 500) || `The server answered with status ${response.status}.`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not from our server, perhaps from a proxy before it: its text has to do.
  }
  throw new ApiError(message, response.status);
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}
