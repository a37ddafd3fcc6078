// Asks Azure's DefaultAzureCredential for a token, and prints why there is none
// and after how long it said so.
const { DefaultAzureCredential } = require("@azure/identity");

const start = process.hrtime.bigint();

function report(why) {
  console.log(JSON.stringify({ seconds: Number(process.hrtime.bigint() - start) / 1e9, error: why }));
}

new DefaultAzureCredential().getToken("https://vault.azure.net/.default").then(
  () => report(""),
  (error) => report(String(error)),
);
