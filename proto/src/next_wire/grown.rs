//! A serializer in front of another that gives every struct a field more. Maps keep their entries: their keys
//! mean something.

use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};
use serde::{Serialize, Serializer};

/// The field.
const FIELD: (&str, &str) = ("next_field", "of the next version");

/// A value that is written with the field in each of its structs.
pub struct Grown<'a, T: ?Sized>(&'a T);

/// Has a value written with a field more in each of its structs.
pub fn grown<T: Serialize + ?Sized>(value: &T) -> Grown<'_, T> {
    Grown(value)
}

impl<T: Serialize + ?Sized> Serialize for Grown<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Grower(serializer))
    }
}

struct Grower<S>(S);

macro_rules! plain {
    ($($method:ident $type:ty,)+) => {
        $(fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.0.$method(value)
        })+
    };
}

impl<S: Serializer> Serializer for Grower<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Grower<S::SerializeSeq>;
    type SerializeTuple = Grower<S::SerializeTuple>;
    type SerializeTupleStruct = Grower<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Grower<S::SerializeTupleVariant>;
    type SerializeMap = Grower<S::SerializeMap>;
    type SerializeStruct = Grower<S::SerializeStruct>;
    type SerializeStructVariant = Grower<S::SerializeStructVariant>;

    plain! {
        serialize_bool bool,
        serialize_i8 i8,
        serialize_i16 i16,
        serialize_i32 i32,
        serialize_i64 i64,
        serialize_u8 u8,
        serialize_u16 u16,
        serialize_u32 u32,
        serialize_u64 u64,
        serialize_f32 f32,
        serialize_f64 f64,
        serialize_char char,
        serialize_str &str,
        serialize_bytes &[u8],
        serialize_unit_struct &'static str,
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Grown(value))
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit_variant(name, index, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Grown(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Grown(value))
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(length).map(Grower)
    }

    fn serialize_tuple(self, length: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(length).map(Grower)
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, length).map(Grower)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, index, variant, length).map(Grower)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.0.serialize_map(length).map(Grower)
    }

    fn serialize_struct(self, name: &'static str, length: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, length + 1).map(Grower)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.0.serialize_struct_variant(name, index, variant, length + 1).map(Grower)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! items {
    ($($trait:ident $method:ident,)+) => {
        $(impl<S: $trait> $trait for Grower<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                self.0.$method(&Grown(value))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        })+
    };
}

items! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field,
}

impl<S: SerializeMap> SerializeMap for Grower<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(&Grown(key))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Grown(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

macro_rules! structs {
    ($($trait:ident,)+) => {
        $(impl<S: $trait> $trait for Grower<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), S::Error> {
                self.0.serialize_field(key, &Grown(value))
            }

            fn skip_field(&mut self, key: &'static str) -> Result<(), S::Error> {
                self.0.skip_field(key)
            }

            fn end(mut self) -> Result<S::Ok, S::Error> {
                self.0.serialize_field(FIELD.0, FIELD.1)?;
                self.0.end()
            }
        })+
    };
}

structs! {
    SerializeStruct,
    SerializeStructVariant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_struct_has_a_field_more_and_no_map_has() {
        #[derive(Serialize)]
        enum Kind {
            Bare,
            Named { inner: Inner },
        }
        #[derive(Serialize)]
        struct Inner {
            map: std::collections::BTreeMap<u8, Option<u8>>,
        }
        let named = Kind::Named { inner: Inner { map: [(1, Some(2))].into() } };
        let text = serde_json::to_string(&grown(&(Kind::Bare, named))).unwrap();
        let more = r#""next_field":"of the next version""#;
        let inner = format!(r#"{{"map":{{"1":2}},{more}}}"#);
        assert_eq!(text, format!(r#"["Bare",{{"Named":{{"inner":{inner},{more}}}}}]"#));
        let bytes = rmp_serde::to_vec_named(&grown(&Kind::Bare)).unwrap();
        assert_eq!(bytes, rmp_serde::to_vec_named(&Kind::Bare).unwrap());
    }
}
