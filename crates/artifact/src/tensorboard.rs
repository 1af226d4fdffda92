//! TensorBoard event files, written and read without TensorFlow: scalars and text.
//!
//! A file is a row of TFRecords, each `length: u64 | crc(length): u32 | payload | crc(payload): u32`, little-endian, where
//! `crc(x) = rotate_right(crc32c(x), 15) + 0xa282ead8`. Each payload is an `Event` protocol buffer; the few fields used
//! are encoded by hand:
//!
//! ```text
//! Event   { wall_time: f64 = 1, step: i64 = 2, file_version: string = 3 | summary: Summary = 5 }
//! Summary { value: repeated Value = 1 }
//! Value   { tag: string = 1, simple_value: f32 = 2 | tensor: Tensor = 8, metadata: Metadata = 9 }
//! ```
//!
//! Left out: histograms, images, graphs, and compressed records. After `tensorflow/core/util/event.proto`,
//! `framework/summary.proto` and `lib/io/record_writer.cc`.

use std::time::{SystemTime, UNIX_EPOCH};

/// A scalar or a text at a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number; TensorBoard keeps 32 bits of it.
    Scalar(f32),
    /// A text, shown as Markdown.
    Text(String),
}

/// One event of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// The training step.
    pub step: i64,
    /// Tags and their values; empty for the file's first event.
    pub values: Vec<(String, Value)>,
}

/// The record every file begins with.
pub fn version_record() -> Vec<u8> {
    let mut event = Vec::new();
    put_double(&mut event, 1, now());
    put_bytes(&mut event, 3, b"brain.Event:2");
    record(&event)
}

/// The record of some values at a step, at this time.
pub fn values_record(step: i64, values: &[(&str, Value)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut field = Vec::new();
        put_bytes(&mut field, 1, tag.as_bytes());
        match value {
            Value::Scalar(number) => {
                put_key(&mut field, 2, FIXED_32);
                field.extend_from_slice(&number.to_le_bytes());
            }
            Value::Text(text) => {
                put_bytes(&mut field, 8, &text_tensor(text));
                put_bytes(&mut field, 9, &text_metadata());
            }
        }
        put_bytes(&mut summary, 1, &field);
    }
    let mut event = Vec::new();
    put_double(&mut event, 1, now());
    put_key(&mut event, 2, VARINT);
    put_varint(&mut event, step.cast_unsigned());
    put_bytes(&mut event, 5, &summary);
    record(&event)
}

/// The whole records at the beginning of a file, each with its bytes in the file; what a crash tore off the end is left out.
pub fn records(mut file: &[u8]) -> Vec<(Event, &[u8])> {
    let mut found = Vec::new();
    while let Some((payload, length)) = first_record(file)
        && let Some(event) = parse_event(payload)
    {
        found.push((event, &file[..length]));
        file = &file[length..];
    }
    found
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// `TensorProto { dtype: DT_STRING = 7 (1), tensor_shape: [1] (2), string_val (8) }`
fn text_tensor(text: &str) -> Vec<u8> {
    let mut tensor = Vec::new();
    put_key(&mut tensor, 1, VARINT);
    put_varint(&mut tensor, 7);
    // TensorShapeProto { dim (2): Dim { size (1): 1 } }
    put_bytes(&mut tensor, 2, &[2 << 3 | 2, 2, 1 << 3, 1]);
    put_bytes(&mut tensor, 8, text.as_bytes());
    tensor
}

/// `SummaryMetadata { plugin_data (1): { plugin_name (1): "text" }, data_class (4): DATA_CLASS_TENSOR = 2 }`
fn text_metadata() -> Vec<u8> {
    let mut plugin = Vec::new();
    put_bytes(&mut plugin, 1, b"text");
    let mut metadata = Vec::new();
    put_bytes(&mut metadata, 1, &plugin);
    put_key(&mut metadata, 4, VARINT);
    put_varint(&mut metadata, 2);
    metadata
}

// Protocol buffers: a field is `number << 3 | wire type`, then the value.

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(out, field << 3 | wire);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, FIXED_64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// One field's value.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Number and value of the next field.
fn take_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = take_varint(bytes)?;
    let value = match key & 7 {
        VARINT => Field::Number(take_varint(bytes)?),
        FIXED_64 => Field::Number(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        BYTES => {
            let length = take_varint(bytes)?.try_into().ok()?;
            Field::Bytes(take(bytes, length)?)
        }
        FIXED_32 => Field::Number(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?).into()),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn parse_event(mut bytes: &[u8]) -> Option<Event> {
    let mut event = Event {
        wall_time: 0.0,
        step: 0,
        values: Vec::new(),
    };
    while !bytes.is_empty() {
        match take_field(&mut bytes)? {
            (1, Field::Number(bits)) => event.wall_time = f64::from_bits(bits),
            (2, Field::Number(step)) => event.step = step.cast_signed(),
            (5, Field::Bytes(mut summary)) => {
                while !summary.is_empty() {
                    if let (1, Field::Bytes(value)) = take_field(&mut summary)? {
                        event.values.extend(parse_value(value)?);
                    }
                }
            }
            _ => {}
        }
    }
    Some(event)
}

/// `None`: malformed; `Some(None)`: a value of a kind that is left out here.
fn parse_value(mut bytes: &[u8]) -> Option<Option<(String, Value)>> {
    let (mut tag, mut found) = (String::new(), None);
    while !bytes.is_empty() {
        match take_field(&mut bytes)? {
            (1, Field::Bytes(text)) => tag = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Number(bits)) => found = Some(Value::Scalar(f32::from_bits(bits as u32))),
            (8, Field::Bytes(mut tensor)) => {
                while !tensor.is_empty() {
                    if let (8, Field::Bytes(text)) = take_field(&mut tensor)? {
                        found = Some(Value::Text(String::from_utf8(text.to_vec()).ok()?));
                    }
                }
            }
            _ => {}
        }
    }
    Some(found.map(|value| (tag, value)))
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    [
        &length,
        &masked_crc(&length).to_le_bytes()[..],
        payload,
        &masked_crc(payload).to_le_bytes(),
    ]
    .concat()
}

/// Payload and whole length of the record that `file` begins with, if both checksums hold.
fn first_record(file: &[u8]) -> Option<(&[u8], usize)> {
    let mut rest = file;
    let length = take(&mut rest, 8)?;
    let crc = take(&mut rest, 4)?;
    if crc != masked_crc(length).to_le_bytes() {
        return None;
    }
    let payload = take(
        &mut rest,
        u64::from_le_bytes(length.try_into().ok()?)
            .try_into()
            .ok()?,
    )?;
    let crc = take(&mut rest, 4)?;
    (crc == masked_crc(payload).to_le_bytes()).then_some((payload, file.len() - rest.len()))
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected, a byte at a time: a few hundred bytes a step need no more.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    crc >> 1 ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| {
        crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc32c_is_castagnolis() {
        // RFC 3720, appendix B.4, and the customary check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn what_is_written_reads_back_up_to_a_torn_end() {
        let values = [
            ("loss", Value::Scalar(2.5)),
            ("sample", Value::Text("Once upon".repeat(40))),
        ];
        let file = [
            version_record(),
            values_record(7, &values),
            values_record(300, &values[..1]),
        ]
        .concat();
        let events = records(&file);
        assert_eq!(
            events
                .iter()
                .map(|(event, _)| event.step)
                .collect::<Vec<_>>(),
            [0, 7, 300]
        );
        let expected: Vec<_> = values
            .iter()
            .map(|(tag, value)| ((*tag).to_owned(), value.clone()))
            .collect();
        assert_eq!(events[1].0.values, expected);
        assert!(events[1].0.wall_time > 1.7e9);
        assert_eq!(
            events.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(),
            file.len()
        );
        for cut in 1..events[2].1.len() {
            assert_eq!(records(&file[..file.len() - cut]).len(), 2);
        }
        let mut flipped = file.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(records(&flipped).len(), 2);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            records(&bytes);
            parse_event(&bytes);
            records(&record(&bytes));
        }
    }
}
