//! Numbers on the wire (proto.md, "Values").

/// The server's first 8 bytes, `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: the server's next 8 bytes, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The start of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The start of every structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags of the server (proto.md, "Handshake flags") and, with the same values, of the client.
pub mod handshake_flag {
    /// The fixed newstyle negotiation is spoken.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zeros after the reply to `NBD_OPT_EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// `NBD_OPT_*` (proto.md, "Option types").
pub mod option {
    /// Ends negotiation without a way to report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// The client goes.
    pub const ABORT: u32 = 2;
    /// Names of the exports.
    pub const LIST: u32 = 3;
    /// TLS from here on.
    pub const STARTTLS: u32 = 5;
    /// Facts of an export.
    pub const INFO: u32 = 6;
    /// Facts of an export, then transmission.
    pub const GO: u32 = 7;
    /// Structured replies from here on.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which metadata contexts match.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// `NBD_REP_*` (proto.md, "Option reply types").
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export's name.
    pub const SERVER: u32 = 2;
    /// One fact of an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT + 1;
    /// Known, but not allowed here.
    pub const ERR_POLICY: u32 = ERROR_BIT + 2;
    /// The option's data makes no sense.
    pub const ERR_INVALID: u32 = ERROR_BIT + 3;
    /// Not before TLS.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT + 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT + 6;
    /// The server does not serve now.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT + 7;
    /// The option's data or reply is too large.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT + 9;
}

/// `NBD_INFO_*` (proto.md, "Option reply types", `NBD_REP_INFO`).
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// `NBD_FLAG_*` (proto.md, "Transmission flags").
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Not writable.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Knows `NBD_CMD_FLUSH`.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Knows `NBD_CMD_FLAG_FUA`.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Knows `NBD_CMD_TRIM`.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Knows `NBD_CMD_WRITE_ZEROES` and `NBD_CMD_FLAG_NO_HOLE`.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Knows `NBD_CMD_FLAG_DF`; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush covers all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Knows `NBD_CMD_CACHE`.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Knows `NBD_CMD_FLAG_FAST_ZERO`.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// `NBD_CMD_*` (proto.md, "Request types").
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// The client goes; no reply.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Read ahead.
    pub const CACHE: u16 = 5;
    /// Write zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Extents.
    pub const BLOCK_STATUS: u16 = 7;
}

/// `NBD_CMD_FLAG_*` (proto.md, "Command flags").
pub mod command_flag {
    /// Stable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeros are to be provisioned.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The read's content in one chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail if zeros are no faster than a write.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// `NBD_REPLY_TYPE_*` (proto.md, "Structured reply types").
pub mod chunk {
    /// The only chunk flag: the last chunk of its reply (`NBD_REPLY_FLAG_DONE`).
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No payload.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of a hole.
    pub const OFFSET_HOLE: u16 = 2;
    /// Context and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error number and a text.
    pub const ERROR: u16 = ERROR_BIT + 1;
    /// The same and the offset where it happened.
    pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;
}

/// States in the context `base:allocation` (proto.md, "`base:allocation` metadata context").
pub mod allocation {
    /// The context's name.
    pub const CONTEXT: &str = "base:allocation";
    /// Nothing is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// The longest string in the protocol (proto.md, "Transmission phase", "String lengths").
pub const TEXT_BYTES_MAX: usize = 4096;
/// The largest payload of a request or a read that we take and announce (proto.md, "Size constraints": 32 MiB is what a
/// client may assume).
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// The block size that suits the server best.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;
