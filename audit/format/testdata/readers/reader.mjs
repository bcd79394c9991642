// Prints a parquet file as JSON: its schema and its rows. Bytes become base64,
// integers and times (in microseconds) decimal text.
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'

const file = await asyncBufferFromFile(process.argv[2])
const metadata = await parquetMetadataAsync(file)
const rows = await parquetReadObjects({
  file,
  metadata,
  compressors,
  utf8: false,
  parsers: {
    timestampFromMilliseconds: v => { throw new Error(`${v} is in milliseconds`) },
    timestampFromMicroseconds: v => `micros:${v}`,
    timestampFromNanoseconds: v => { throw new Error(`${v} is in nanoseconds`) },
    stringFromBytes: b => b && new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(b),
    dateFromDays: v => v,
  },
})
const plain = (_, v) => {
  if (typeof v === 'bigint') return String(v)
  if (v instanceof Uint8Array) return Buffer.from(v).toString('base64')
  return v
}
// JSON.stringify gives a Buffer's own form before the replacer sees it, so bytes are turned first.
const text = JSON.stringify({
  schema: metadata.schema.slice(1).map(e => [e.name, e.type, e.repetition_type, e.logical_type ?? null, e.type_length ?? null]),
  groups: metadata.row_groups.length,
  rows: rows.map(r => Object.fromEntries(Object.entries(r).map(([k, v]) => [k, plain(k, v)]))),
}, plain)
await new Promise(done => process.stdout.write(text, done))
