//! The model of a multipart form (audio transcriptions and the like).

use bytes::Bytes;
use multer::Multipart;

/// Longest model name read from a form, bytes.
const MODEL_BYTES_MAX: usize = 512;

/// The form's `model` field, when the body is a form that has one.
pub async fn model(content_type: &str, body: Bytes) -> Option<String> {
    let boundary = multer::parse_boundary(content_type).ok()?;
    let whole = async move { Ok::<_, std::convert::Infallible>(body) };
    let mut form = Multipart::new(futures_util::stream::once(whole), boundary);
    while let Ok(Some(field)) = form.next_field().await {
        if field.name() == Some("model") {
            let name = field.bytes().await.ok().filter(|b| b.len() <= MODEL_BYTES_MAX)?;
            return String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> Bytes {
        Bytes::from_static(
            b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n\
              RIFF--X\r\n--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n\
              --XX--\r\n",
        )
    }

    #[tokio::test]
    async fn finds_the_model_behind_a_file() {
        let found = model("multipart/form-data; boundary=XX", form()).await;
        assert_eq!(found.as_deref(), Some("whisper"));
    }

    #[tokio::test]
    async fn anything_else_has_no_model() {
        assert_eq!(model("application/json", form()).await, None);
        assert_eq!(model("multipart/form-data; boundary=YY", form()).await, None);
        assert_eq!(model("multipart/form-data; boundary=XX", Bytes::new()).await, None);
    }
}
