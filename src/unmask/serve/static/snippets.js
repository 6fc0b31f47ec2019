// The same request from a shell, and from Python without any package.

/** Return the parts of a request as a command of curl. */
export function curl(path, body, withKey) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = withKey ? ` \\\n  -H "Authorization: Bearer $UNMASK_API_KEY"` : "";
  return `curl -s ${quoted(address(path))} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}\n`;
}

/** Return them as a program in Python, which writes strings, numbers, lists and objects as JSON does. */
export function python(path, body, withKey) {
  const rest = { "api/fill": FILL, "api/score": SCORE }[path] ?? "print(json.dumps(answer, indent=2))\n";
  const key = withKey ? `, "Authorization": "Bearer " + os.environ["UNMASK_API_KEY"]` : "";
  return `import json
${withKey ? "import os\n" : ""}from urllib.request import Request, urlopen

question = ${JSON.stringify(body)}
headers = {"Content-Type": "application/json"${key}}
with urlopen(Request(${JSON.stringify(address(path))}, json.dumps(question).encode(), headers)) as response:
    answer = json.load(response)
${rest}`;
}

const FILL = `for mask in answer["masks"]:
    for candidate in mask["candidates"]:
        print(candidate["score"], candidate["word"])
`;
const SCORE = `for token in answer["tokens"]:
    print(token["surprisal_nats"], token["text"])
print("pseudo-perplexity:", answer["pseudo_perplexity"])
`;

const address = (path) => new URL(path, document.baseURI).href;
